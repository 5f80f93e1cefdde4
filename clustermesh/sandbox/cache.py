"""
What takes minutes to make is made once for a machine, and kept in the user's cache.

Sandboxes and tests never make anything: they look whether it is there, and say what to do if not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from clustermesh.errors import UserError

_NEWS: Final = 30.0  # seconds between two lines of progress, where there is no terminal


class UnavailableError(UserError):
    """Something is not on this machine, or cannot be. Says why, and what to do."""


def place(name: str) -> Path:
    """Where `name` is, or is to be. It should say what it was made from."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "clustermesh" / name


def made(name: str, make: Callable[[Path], None]) -> Path:
    """
    The directory `name`, filled by `make` unless it is there. Two at a time make it once.

    It appears when it is whole. Raises what `make` raises.
    """
    directory = place(name)
    with _lock(directory.with_name(f"{name}.lock")):
        if not directory.is_dir():
            unfinished = directory.with_name(f"{name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(directory)
    return directory


def say(text: str, *, stay: bool = False) -> None:
    """Tell the user. On a terminal, what may `stay` in one line is overwritten by the next."""
    terminal = sys.stderr.isatty()
    start = "\r\x1b[K" if terminal else ""
    sys.stderr.write(f"{start}{text}{'' if stay and terminal else chr(10)}")
    sys.stderr.flush()


class Progress:
    """How far something is that takes its time, told now and then."""

    def __init__(self, what: str) -> None:
        """Count `what`: `of at most 900 packages`."""
        self._what = what
        self._started = self._said = time.monotonic()
        self._done = 0

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        now = time.monotonic()
        if sys.stderr.isatty() or now - self._said >= _NEWS:
            self._said = now
            minutes, seconds = divmod(int(now - self._started), 60)
            say(f"  {minutes}:{seconds:02}  {self._done} {self._what}", stay=True)


def last_line(text: str) -> str:
    """The last line that a program said."""
    return ([line.strip() for line in text.splitlines() if line.strip()] or ["it said nothing"])[-1]


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock `path`. It goes with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is making {path.stem}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
