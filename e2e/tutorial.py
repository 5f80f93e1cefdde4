"""Follows a tutorial, word for word: every `$ command` in it, and the shape of what it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from clustermesh.sandbox import remains

_ROOT: Final = Path(__file__).parents[1]
_VARIES: Final = re.compile(
    r"\b\d+(s|m(\d+s)?)\b|\d+(\.\d+)?|(?<=sandbox )\S+(?= is (up|down))|(?<=leader )\S+"
)

_MAY_BE: Final = re.compile(r"(\S+: )?\d+ packets were dropped: SPOOFED_SOURCE")
"""A warning that is there if a peer's first probe has come before what we have to know of it."""


class Command(NamedTuple):
    """A line after a `$`, and the lines below it."""

    line: int  # in the tutorial
    text: str
    output: tuple[str, ...]


def commands(text: str) -> Iterator[Command]:
    """The commands of the `console` blocks. What is in `sh` blocks needs another machine."""
    lines = iter(enumerate(text.splitlines(), start=1))
    for _, line in lines:
        if line != "```console":
            continue
        found: list[tuple[int, str, list[str]]] = []
        for number, inside in lines:
            if inside == "```":
                break
            if inside.startswith("$ "):
                found.append((number, inside.removeprefix("$ "), []))
            else:
                found[-1][2].append(inside)
        yield from (Command(number, text, tuple(output)) for number, text, output in found)


def shape(lines: tuple[str, ...]) -> list[str]:
    """Lines without what differs from run to run: numbers, padding, names of sandbox and host."""
    return [" ".join(_VARIES.sub("N", line).split()) for line in lines]


def follow(tutorial: str, name: str, tmp_path: Path) -> None:
    """
    Do all that a page of docs says, and see that it prints what is written there.

    Args:
        name: the sandbox's; it is taken down afterwards.
    """
    page = _ROOT / "docs" / tutorial
    exports = tmp_path / "exports"  # what one command exports, the next one has
    exports.touch()
    environment = {
        **os.environ,
        "CLUSTERMESH_SANDBOX": name,
        # The `python` of the tutorial is that of the virtual environment that runs this test.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    try:
        for command in commands(page.read_text()):
            script = f". {exports}; {command.text}; code=$?; export -p > {exports}; exit $code"
            done = subprocess.run(
                ["bash", "-c", script],
                check=False,  # status may well find something wrong; what is printed counts
                cwd=_ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=100,
            )
            where = f"{page.name}:{command.line}: {command.text}"
            said = tuple(s for s in done.stdout.splitlines() if not _MAY_BE.fullmatch(s.strip()))
            assert shape(said) == shape(command.output), (
                f"{where}\nsays:\n{done.stdout}{done.stderr}"
            )
    finally:
        remains.down(name)
