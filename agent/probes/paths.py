"""
All ways to the nodes of other clusters: each is looked at again and again, and shown.

Whatever there is to ask waits for its turn, and a way is looked at next when all that is under way
leaves one over. So a node asks no more than it may in a second, however many ways there are and
however many of them fail; and no look waits for long once it has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from heapq import heappop, heappush
from statistics import median
from typing import Any, Final, TypeAlias

import msgspec

from agent.rules.causes import Verdict
from agent.rules.probes import PathKey, Probe
from clustermesh.state import Table, Watch
from clustermesh.status import ClusterPaths, PathsStatus

from .echo import Echo
from .here import Here
from .look import Look, Tools, look_at
from .messages import Message
from .pace import Pace

log = logging.getLogger(__name__)

_EVERY: Final = 5.0  # seconds between two looks at a way
_FAILING_EVERY: Final = 1.0  # seconds: so that what is mended is soon seen to be
_PER_SECOND: Final = 200  # questions, about all ways together: of many each is looked at less often
_ADDRESSES_EVERY: Final = 1.0
_GRACE: Final = 30.0  # seconds in which an address to probe may yet be published or found
_HISTORY: Final = 20  # looks that the loss is told of


LookAt: TypeAlias = Callable[[Tools, PathKey, Probe, str], Awaitable[Look]]


class Probed(msgspec.Struct, frozen=True, gc=False):
    """How a way is."""

    path: Probe
    unprobed: str = ""  # why nothing is known
    unprobed_since: float = 0.0  # in the time of the loop
    began: float | None = None  # the last look, in the time of the loop; None: there was none yet
    loss: float = 0.0  # of the last questions, 0 to 1
    round_trip: float | None = None  # seconds
    mtu: int = 0  # bytes
    verdict: str = ""
    cause: str = ""
    note: str = ""

    @property
    def state(self) -> str:
        """In a word, for a person and for what asks again until it is another."""
        if self.path.refused or self.cause:
            return "failing"
        if self.unprobed:
            return "not probed"
        return "well" if self.began is not None else "pending"


class Paths:
    """Every way, and how it is."""

    def __init__(
        self, here: Here, wanted: Table[PathKey, Probe], port: int, look: LookAt = look_at
    ) -> None:
        """
        Args:
            wanted: the ways that there are.
            port: where agents answer; 0: nobody asks or answers.
        """
        self.table: Final[Table[PathKey, Probed]] = Table("paths")
        self._rows = self.table.writer("probes")
        self._here = here
        self._wanted = wanted
        self._port = port
        self._look_at = look
        self._echo = Echo(port, self._about_us)
        self._pace = Pace(_PER_SECOND)
        self._tools = Tools(here, self._echo, port, self._pace)
        self._histories: dict[PathKey, deque[Look]] = {}
        self._looking: set[PathKey] = set()
        self._due: dict[PathKey, float] = {}  # when each is looked at next, in the time of the loop
        self._queue: list[tuple[float, PathKey]] = []  # the same as a heap, with some of before
        self._queued = asyncio.Event()

    async def run(self) -> None:
        """Look until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_wanted(), name="ways to probe")
                if self._port:
                    tasks.create_task(self._follow_addresses(), name="addresses of probes")
                await self._here.attached()  # until then no way leads anywhere
                while True:
                    key = await self._next()
                    await self._pace.turn()
                    if self._due.pop(key, None) is not None:  # it has not gone meanwhile
                        self._looking.add(key)
                        tasks.create_task(self._look(key), name=f"probe {key}")
        finally:
            self._echo.close()

    def status(self) -> PathsStatus:
        """Sum up. May be called in any thread."""
        rows = [(k, row) for k in tuple(self.table.keys()) if (row := self.table.first(k))]
        return summary(rows, time.monotonic(), self._echo.failure)  # which is the loop's time

    def show(self, key: PathKey, rows: Mapping[str, Probed]) -> Iterable[Mapping[str, Any]]:
        """A way as a person reads it; `age` is how many seconds ago the last look began."""
        now = asyncio.get_running_loop().time()
        for row in rows.values():
            yield {
                "cluster": key.cluster,
                "node": key.node,
                "ip": f"IPv{key.version}",
                "address": str(row.path.address or ""),
                "state": row.state,
                "loss": f"{row.loss:.0%}" if row.began is not None else "",
                "round_trip": f"{row.round_trip * 1000:.2f} ms" if row.round_trip else "",
                "mtu": row.mtu or None,
                "age": round(now - row.began, 1) if row.began is not None else None,
                "note": row.note or row.unprobed,
                "failing": row.path.refused or row.cause,
            }

    async def _follow_wanted(self) -> None:
        async for keys in Watch(self._wanted):
            for key in keys:
                self._consider(key)

    async def _follow_addresses(self) -> None:
        """Listen where this node can be reached. Nothing tells of a change, but looking."""
        before = None
        while True:
            self._echo.listen(addresses := self._here.addresses())
            if addresses != before:
                for key in tuple(self._wanted.keys()):
                    self._consider(key)
            before = addresses
            await asyncio.sleep(_ADDRESSES_EVERY)

    def _consider(self, key: PathKey) -> None:
        """A way has come, changed or gone, or what it is probed from has."""
        path, now = self._wanted.first(key), asyncio.get_running_loop().time()
        if path is not None and not path.refused and not (why := self._unprobed(key, path)):
            if key not in self._histories:
                self._histories[key] = deque(maxlen=_HISTORY)
                self._rows.put(key, Probed(path))
            if key not in self._looking:
                self._schedule(key, now)
            return
        self._due.pop(key, None)
        self._histories.pop(key, None)
        if path is None:
            if key in self._rows.own:
                self._rows.delete(key)
        elif path.refused:
            self._rows.put(key, Probed(path, verdict=Verdict.REFUSED))
        else:
            self._put_unprobed(key, path, why)

    def _put_unprobed(self, key: PathKey, path: Probe, why: str) -> None:
        last, now = self.table.first(key), asyncio.get_running_loop().time()
        since = last.unprobed_since if last and last.unprobed else now
        self._rows.put(key, Probed(path, why, since))

    def _schedule(self, key: PathKey, at: float) -> None:
        self._due[key] = at
        heappush(self._queue, (at, key))
        self._queued.set()

    async def _next(self) -> PathKey:
        """Wait until a way is due; the one that has been so for longest."""
        while True:
            while self._queue and self._due.get(self._queue[0][1]) != self._queue[0][0]:
                heappop(self._queue)
            first = self._queue[0] if self._queue else None
            if first and first[0] <= asyncio.get_running_loop().time():
                return first[1]
            self._queued.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(first[0] if first else None):
                    await self._queued.wait()

    async def _look(self, key: PathKey) -> None:
        """Look once, and say when to do so again."""
        loop = asyncio.get_running_loop()
        path, history, began = self._wanted.first(key), self._histories.get(key), loop.time()
        if path is None or history is None or path.refused or self._unprobed(key, path):
            self._looking.discard(key)
            self._consider(key)  # it is another way, or none, since its turn came
            return
        look, why = None, ""
        try:
            look = await self._look_at(self._tools, key, path, self._verdict(key))
        except OSError as error:  # the address that we ask from has just gone
            why = f"this node cannot ask: {error.strerror or error}"
        self._looking.discard(key)
        if self._histories.get(key) is not history:
            self._consider(key)  # it was another way, or none, meanwhile
            return
        if look is None:
            self._put_unprobed(key, path, why)
        else:
            history.append(look)
            before, row = self._verdict(key), _probed(path, began, history)
            self._rows.put(key, row)
            if row.verdict != before:
                _log(key, before, row)
        self._schedule(key, loop.time() + self._pause(key))

    def _pause(self, key: PathKey) -> float:
        row = self.table.first(key)
        is_well = row is not None and row.state == "well" and not row.note
        # Those that started together come apart.
        return (_EVERY if is_well else _FAILING_EVERY) * random.uniform(0.8, 1.2)

    def _unprobed(self, key: PathKey, path: Probe) -> str:
        if not self._port:
            return "--probe-port is 0"
        if path.refused or path.unprobed:
            return path.unprobed
        if self._here.source(key.version) is None:
            return f"this node has no IPv{key.version} address to ask from"
        return ""

    def _verdict(self, key: PathKey) -> str:
        row = self.table.first(key)
        return row.verdict if row else ""

    def _about_us(self, key: PathKey) -> Message:
        return self._here.message(key, self._verdict(key))


def _log(key: PathKey, before: str, row: Probed) -> None:
    """A way is another than it was."""
    if row.cause:
        log.warning("the way to %s fails: %s", key, row.cause)
    elif before:
        log.info("the way to %s is well again", key)


def _probed(path: Probe, began: float, history: Iterable[Look]) -> Probed:
    looks = list(history)
    last = looks[-1]
    asked = sum(look.asked for look in looks)
    return Probed(
        path,
        began=began,
        loss=1 - sum(look.answered for look in looks) / asked,
        round_trip=last.round_trip,
        mtu=last.mtu,
        verdict=last.cause.verdict if last.cause else Verdict.WELL,
        cause=last.cause.text if last.cause else "",
        note=last.note,
    )


def summary(
    rows: Iterable[tuple[PathKey, Probed]], now: float, failure: str | None = None
) -> PathsStatus:
    """
    How the ways are by cluster, and what is wrong with which.

    Args:
        failure: why nobody can probe us.
    """
    by_cluster: dict[str, list[tuple[PathKey, Probed]]] = {}
    for key, row in sorted(rows, key=lambda item: item[0]):
        by_cluster.setdefault(key.cluster, []).append((key, row))
    everything = [item for items in by_cluster.values() for item in items]
    return PathsStatus(
        clusters=[_cluster(name, [row for _, row in items]) for name, items in by_cluster.items()],
        failing=[f"{key}: {row.cause}" for key, row in everything if row.cause],
        not_probed=list(_unprobed(everything, now)),
        last_error=failure,
    )


def _cluster(name: str, rows: list[Probed]) -> ClusterPaths:
    states = Counter(row.state for row in rows)
    known = [row for row in rows if row.began is not None]
    return ClusterPaths(
        cluster=name,
        paths=len(rows),
        well=states["well"],
        failing=states["failing"],
        not_probed=states["not probed"],
        loss=round(sum(row.loss for row in known) / len(known), 4) if known else 0.0,
        round_trip=median(trips)
        if (trips := [r.round_trip for r in rows if r.round_trip])
        else None,
        worst=next((row.cause or row.path.refused for row in rows if row.state == "failing"), ""),
    )


def _unprobed(items: Iterable[tuple[PathKey, Probed]], now: float) -> Iterator[str]:
    """A line for each reason, if it is one to do something about and does not pass by itself."""
    reasons: dict[tuple[str, str], list[PathKey]] = {}
    for key, row in items:
        is_lasting = now - row.unprobed_since >= _GRACE
        if row.unprobed and row.path.is_sampled and is_lasting:
            reasons.setdefault((key.cluster, row.unprobed), []).append(key)
    for (cluster, reason), keys in reasons.items():
        which = str(keys[0]) if len(keys) == 1 else f"{len(keys)} ways to {cluster}"
        yield f"{which}: not probed: {reason}"
