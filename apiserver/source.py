from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .manifests import Problem


class Source(Protocol):
    """Where the state of a cluster is read: it keeps the tables of `Objects` equal to that."""

    async def run(self) -> None:
        """Follow it until cancelled. What cannot be read at present stays as it was."""

    @property
    def listed(self) -> bool:
        """Whether everything has been read once."""

    @property
    def count(self) -> int:
        """How many objects there are."""

    @property
    def problems(self) -> Sequence[Problem]:
        """What is wrong at present: with the place as a whole, or with single objects."""
