"""Writes docs/benchmarks.md and its plots."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from .measurement import Bars, Goal, Measurement, Plot, Table

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "benchmarks.md"

# The same numbers give the same file: no date in it, and no random names.
_STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "clustermesh",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_COLOURS: Final = ("#7a8ca3", "#2f6f9f", "#d9822b")
_GOAL_COLOUR: Final = "#b23b3b"

_HEAD: Final = """\
# Benchmarks

Written by `make bench` on {date}: Linux {kernel}, {cpus} CPUs with a load of {load:.1f}
(over five minutes), Python {python}. Do not edit.

Every number comes from one run on one machine, which does other things too. Times differ from
machine to machine; **ratios** are of two things that took turns in the same run, and travel better.
How each is measured is in `e2e/bench/`, a file to a question; `python -m e2e.bench NAME` runs one.
"""


def write(measurements: Sequence[Measurement], document: Path = DOCUMENT) -> None:
    """Replace the document and its plots."""
    plots = document.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    for stale in plots.glob("*.svg"):
        stale.unlink()
    for measurement in measurements:
        for plot in measurement.plots:
            _draw(plot, plots / f"{plot.name}.svg")
    document.write_text("\n".join(_lines(measurements, plots.name)).rstrip() + "\n")


def text(measurement: Measurement) -> str:
    """The numbers of one measurement, for a terminal."""
    return "\n".join(_numbers(measurement))


def _lines(measurements: Sequence[Measurement], plots: str) -> Iterator[str]:
    yield _HEAD.format(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        kernel=platform.release().partition("-")[0],
        cpus=os.cpu_count(),
        load=os.getloadavg()[1],
        python=platform.python_version(),
    )
    yield "## Goals\n"
    yield from _goals([goal for measurement in measurements for goal in measurement.goals])
    for measurement in measurements:
        yield f"## {measurement.title}\n\n{measurement.text.rstrip()}\n"
        yield from _numbers(measurement)
        for plot in measurement.plots:
            yield f"![{plot.title}]({plots}/{plot.name}.svg)\n"


def _numbers(measurement: Measurement) -> Iterator[str]:
    if measurement.goals:
        yield from _goals(measurement.goals)
    for table in measurement.tables:
        yield from _table(table)


def _goals(goals: Sequence[Goal]) -> Iterator[str]:
    yield from _table(
        Table(
            ["goal", "measured", "at most", ""],
            [
                [
                    goal.what,
                    f"{goal.shown} {goal.unit}",
                    f"{goal.at_most:g} {goal.unit}",
                    "met" if goal.is_met else "**missed**",
                ]
                for goal in goals
            ],
        )
    )


def _table(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(table.columns)} |"
    yield "|---" * len(table.columns) + "|"
    for row in table.rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _draw(plot: Plot, path: Path) -> None:
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
        axes.set_title(plot.title, loc="left", fontsize=10)
        if isinstance(plot, Bars):
            _draw_bars(axes, plot)
        else:
            for colour, (name, samples) in zip(_COLOURS[1:], plot.samples.items(), strict=False):
                axes.ecdf(samples, label=name, color=colour)
            axes.set_xlabel(plot.unit)
            if plot.goal is not None:
                axes.axvline(plot.goal, color=_GOAL_COLOUR, linestyle="--", label="goal, median")
            axes.set_xlim(left=0)  # the right end stays where it is now: after all was drawn
        figure.legend(frameon=False, loc="outside right upper")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _draw_bars(axes: Any, plot: Bars) -> None:
    width = 0.8 / len(plot.series)
    for index, (name, values) in enumerate(plot.series.items()):
        offset = (index - (len(plot.series) - 1) / 2) * width
        places = [place + offset for place in range(len(plot.groups))]
        bars = axes.bar(places, values, width * 0.92, label=name, color=_COLOURS[index])
        axes.bar_label(bars, fmt="%.3g", fontsize=7)
    names = [fill(group, 70 // len(plot.groups)) for group in plot.groups]
    axes.set_xticks(range(len(plot.groups)), names)
    axes.set_ylabel(plot.unit)
    if plot.goal is not None:
        axes.axhline(plot.goal, color=_GOAL_COLOUR, linestyle="--", label="goal")
