"""What a measurement gives: sentences, numbers held against goals, tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Goal:
    """A number that was measured, and the most that it should be."""

    what: str
    measured: float
    at_most: float
    unit: str

    @property
    def is_met(self) -> bool:
        """Whether it was reached in this run."""
        return self.measured <= self.at_most

    @property
    def shown(self) -> str:
        """The number, with as many digits as it takes to see that it was missed."""
        for digits in range(3, 17):
            text = f"{self.measured:.{digits}g}"
            if self.is_met or float(text) > self.at_most:
                break
        return text


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text, as a person reads them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Bars:
    """Groups of bars, a series to a colour."""

    name: str  # of the file
    title: str
    unit: str
    groups: Sequence[str]
    series: Mapping[str, Sequence[float]]
    goal: float | None = None


@dataclass(frozen=True, slots=True)
class Distribution:
    """Which share of the samples is below what: one curve for each."""

    name: str
    title: str
    unit: str
    samples: Mapping[str, Sequence[float]]
    goal: float | None = None


Plot: TypeAlias = Bars | Distribution


@dataclass(frozen=True, slots=True)
class Measurement:
    """All that there is to say about one question."""

    title: str
    text: str
    goals: Sequence[Goal]
    tables: Sequence[Table]
    plots: Sequence[Plot]


class Say(Protocol):
    """Shows progress."""

    def __call__(self, text: str) -> None:
        """Print a line."""


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample that `share` of all are not above: 0.5 is the median."""
    return sorted(samples)[min(len(samples) - 1, int(share * len(samples)))]
