"""
A directory of Kubernetes manifests as the source of a cluster's state.

For machines without Kubernetes: VMs and bare metal join a mesh with it, and so does the sandbox.
Every file is a writer of its own in every table, so two files that define one object are two rows,
of which the first keeps it. A file that cannot be read, or that has a document with a mistake in
it, takes nothing away: what it no longer names stays until it can be read as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import watchfiles
from watchfiles._rust_notify import WatchfilesRustInternalError

from clustermesh.model import ObjectName
from clustermesh.state import Table, Writer

from .manifests import Parsed, Problem, parse
from .objects import AnyObject
from .tables import Objects

log = logging.getLogger(__name__)

_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
_SETTLE: Final = 4  # milliseconds without a further change before a change is looked at
_LOOK_AGAIN: Final = 5000  # milliseconds after which everything is looked at, change or not

_LOOK_UNWATCHED: Final = 1.0  # seconds between looks at a directory that cannot be watched


class _Signature(NamedTuple):
    """Tells one state of a file from the next, without reading it."""

    inode: int
    size: int
    modified: int  # nanoseconds


@dataclass(slots=True)
class _File:
    signature: _Signature
    problems: tuple[Problem, ...] = ()
    writers: dict[type[AnyObject], Writer[ObjectName, Any]] = field(default_factory=dict)


class Directory:
    """Keeps the tables of `objects` equal to the manifests below a directory."""

    def __init__(self, path: Path, objects: Objects) -> None:
        self._path = path
        self._tables: Mapping[type[AnyObject], Table[ObjectName, Any]] = objects.by_kind
        # Holds every table back until the first look has seen every file.
        self._gates = [table.writer("directory") for table in self._tables.values()]
        self._files: dict[Path, _File] = {}
        self._unreadable: tuple[Problem, ...] = ()
        self._unwatched: tuple[Problem, ...] = ()
        self.listed = False

    @property
    def problems(self) -> list[Problem]:
        """What is wrong with the manifests at present."""
        of_files = (p for file in self._files.values() for p in file.problems)
        return [*self._unwatched, *self._unreadable, *of_files, *self._duplicates()]

    @property
    def count(self) -> int:
        """How many objects there are."""
        return sum(len(table) for table in self._tables.values())

    async def run(self) -> None:
        """Follow the directory until cancelled. A directory that is not there yet is waited for."""
        while True:
            try:
                async with aclosing(self._changes()) as changes:
                    async for _ in changes:
                        await self._look()
                        self._unwatched = ()
            except* (OSError, WatchfilesRustInternalError) as errors:
                # The kernel has no more watches for us, or something changed whose name is no text.
                self._cannot_watch(errors)
                await self._look()
                await asyncio.sleep(_LOOK_UNWATCHED)

    async def _changes(self) -> AsyncGenerator[None, None]:
        """Yield when the directory may have changed; the watch stands before the first look."""
        if not self._path.is_dir():
            await self._look()
            await asyncio.sleep(1)
            return
        changes = watchfiles.awatch(
            self._path,
            watch_filter=None,
            debounce=50,
            step=_SETTLE,
            rust_timeout=_LOOK_AGAIN,
            yield_on_timeout=True,
        )
        waiting = asyncio.ensure_future(anext(changes))
        try:
            await asyncio.sleep(0)  # the watch is set up in the task's first step
            if waiting.done():
                await waiting  # raises why not
            yield
            while True:
                await waiting
                waiting = asyncio.ensure_future(anext(changes))
                yield
                if not self._path.is_dir():
                    return
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await changes.aclose()

    def _cannot_watch(self, errors: BaseExceptionGroup[Exception]) -> None:
        cause: BaseException = errors
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        problem = Problem(str(self._path), f"is not watched, but looked at now and then: {cause}")
        if problem not in self._unwatched:
            log.warning("%s %s", problem.where, problem.error)
        self._unwatched = (problem,)

    async def _look(self) -> None:
        try:
            found = await asyncio.to_thread(_signatures, self._path)
        except OSError as error:
            # What was read before stays: a directory that is unmounted is no order to withdraw.
            self._report((Problem(str(self._path), error.strerror or str(error)),), ())
            return
        self._unreadable = ()
        changed = {
            path: signature
            for path, signature in sorted(found.items())
            if path not in self._files or self._files[path].signature != signature
        }
        parsed = await asyncio.to_thread(lambda: {p: _read(p, self._path) for p in changed})
        for path, signature in changed.items():
            self._take(path, signature, parsed[path])
        # After the others, and without a pause: what has moved to another file is never missing.
        for path in [path for path in self._files if path not in found]:
            self._report((), self._files[path].problems)
            for writer in self._files.pop(path).writers.values():
                writer.close()
        if not self.listed:
            self.listed = True
            for gate in self._gates:
                gate.list_done()

    def _take(self, path: Path, signature: _Signature, parsed: Parsed) -> None:
        file = self._files.setdefault(path, _File(signature))
        for problem in parsed.problems:
            if problem not in file.problems:
                log.warning("%s: %s", problem.where, problem.error)
        file.signature, file.problems = signature, parsed.problems
        rows: dict[type[AnyObject], dict[ObjectName, AnyObject]] = {k: {} for k in file.writers}
        for item in parsed.objects:
            rows.setdefault(type(item), {}).setdefault(item.key, item)
        for kind, objects in rows.items():
            writer = file.writers.get(kind)
            if writer is None:
                writer = self._tables[kind].writer(_where(path, self._path))
                file.writers[kind] = writer
            if parsed.problems:
                for key, item in objects.items():
                    writer.put(key, item)
                if not writer.listed:
                    writer.list_done()
            else:
                writer.replace(objects)

    def _report(self, unreadable: tuple[Problem, ...], solved: Iterable[Problem]) -> None:
        for problem in unreadable:
            if problem not in self._unreadable:
                log.warning("%s: %s", problem.where, problem.error)
        for problem in solved:
            log.info("%s: gone", problem.where)
        self._unreadable = unreadable

    def _duplicates(self) -> Iterable[Problem]:
        for kind, table in self._tables.items():
            for key in table.keys():
                first, *others = table.rows(key)
                for other in others:
                    name = str(key) if key.namespace else key.name
                    yield Problem(other, f"{kind.__name__} {name} is already defined in {first}")


def _signatures(directory: Path) -> dict[Path, _Signature]:
    """Raises OSError if the directory cannot be read; a file that vanishes meanwhile is no file."""
    found = {}
    for folder, folders, files in os.walk(directory, onerror=_raise, followlinks=True):
        folders[:] = [name for name in folders if _is_below(Path(folder), name)]
        for name in files:
            path = Path(folder, name)
            if path.suffix in _SUFFIXES and not name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    found[path] = _signature(path)
    return found


def _is_below(folder: Path, name: str) -> bool:
    """Whether to go on into `name`: not into what is hidden, nor through a link to where we are."""
    path = folder / name
    is_loop = path.is_symlink() and folder.resolve().is_relative_to(path.resolve())
    return not name.startswith(".") and not is_loop


def _signature(path: Path) -> _Signature:
    try:
        found = path.stat()
    except FileNotFoundError:
        raise
    except OSError:
        return _Signature(0, 0, 0)  # reading it will say why
    return _Signature(found.st_ino, found.st_size, found.st_mtime_ns)


def _raise(error: OSError) -> None:
    raise error


def _read(path: Path, directory: Path) -> Parsed:
    where = _where(path, directory)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would never end
            return Parsed((), (Problem(where, "is no regular file"),))
        return parse(path.read_bytes(), where)
    except OSError as error:
        return Parsed((), (Problem(where, f"cannot be read: {error.strerror}"),))


def _where(path: Path, directory: Path) -> str:
    """The name of a file for people and JSON: a file system takes bytes that are no text."""
    return os.fsencode(path.relative_to(directory)).decode(errors="backslashreplace")
