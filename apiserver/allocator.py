"""
Numbers for sets of labels, stable over restarts.

A number starts its search at a hash of the labels, so that the same labels mostly get the same
number even where nothing is remembered. What makes it certain is the store: a number is there
before anybody can read it in etcd, which is only a cache and may be empty after a restart. A number
is given to other labels only after it was forgotten, and it is forgotten only after no pod has had
its labels for half an hour: by then nobody's packets carry it.

Of several replicas all follow what is remembered, and one leads, which gives and forgets numbers.
Should two believe that they lead, the store still gives each number once. Then one set of labels
may have two numbers: all replicas use the lower one, and the other is forgotten as unused.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Collection, Iterable, Sequence
from typing import Final, Protocol

from clustermesh.model import Identity, IdentityId, IPAddress
from clustermesh.state import Index, Source, Table, Watch, replicate

from .manifests import Problem
from .rules.endpoints import Claim, Labels

log = logging.getLogger(__name__)


class Store(Protocol):
    """Where numbers outlive the process."""

    @property
    def problems(self) -> Sequence[Problem]:
        """Why it cannot be read at present, and what in it makes no sense."""

    def follow(self) -> Source[IdentityId, Identity]:
        """
        Everything that is remembered, and what others add or remove.

        Raises:
            UserError: what is remembered makes no sense.
        """

    async def add(self, identities: Sequence[Identity]) -> Iterable[Identity]:
        """
        Remember those whose numbers are free; return what is remembered by their numbers then.

        Raises:
            OSError: perhaps some of them are remembered; add them again.
        """

    async def remove(self, numbers: Collection[IdentityId]) -> None:
        """Forget these. Raises OSError: perhaps some are forgotten."""


class Allocator:
    """Gives a number to every set of labels that `claims` has, and fills the table of numbers."""

    RETRY_AFTER: Final = 5.0  # seconds
    UNUSED_FOR: Final = 1800.0  # seconds after which a number is forgotten
    LOOK_EVERY: Final = 60.0  # seconds

    def __init__(
        self,
        claims: Index[Labels, IPAddress, Claim],
        given: Table[IdentityId, Identity],
        given_by_labels: Index[Labels, IdentityId, Identity],
        numbers: range,
        store: Store,
    ) -> None:
        """
        Args:
            given: the table to fill. It is ready when every pod has its number: readers prune what
                is not there then.
            given_by_labels: the same table.
            numbers: those that this cluster may give.
        """
        self._store_problem: str | None = None  # at present
        self._exhausted: str | None = None
        self._claims = claims
        self._given = given.writer("allocator")
        self._given_by_labels = given_by_labels
        self._numbers = numbers
        self._store = store
        self._remembered: Table[IdentityId, Identity] = Table("remembered identities")
        self._memory = self._remembered.writer("store")
        self._remembered_by_labels = Index(
            "remembered identities by labels", self._remembered, lambda _, row: (row.labels,)
        )
        self._is_leading = False

    @property
    def problems(self) -> list[Problem]:
        """Why some pods have no identity, for `status`."""
        own = filter(None, (self._store_problem, self._exhausted))
        return [*self._store.problems, *(Problem("identities", error) for error in own)]

    async def run(self) -> None:
        """
        Follow what is remembered, until cancelled.

        Raises:
            UserError: what the store holds makes no sense.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(replicate(self._store.follow(), self._memory), name="remember")
            await self._remembered.ready()
            tasks.create_task(self._give_remembered(), name="give remembered identities")
            tasks.create_task(self._collect(), name="collect identities")
            await self._complete()

    async def lead(self) -> None:
        """Give new numbers, and forget those that are not used any more, until cancelled."""
        await self._remembered.ready()
        self._is_leading = True
        watch: Watch[Labels] = Watch(self._claims, self._remembered_by_labels)
        missing: set[Labels] = set()
        try:
            async for batch in watch:
                missing = {labels for labels in missing | batch if self._is_forgotten(labels)}
                for identity in await self._add(self._numbered(missing)):
                    self._memory.put(identity.id, identity)
                    # If somebody else was faster to take the number, look again.
                    missing.discard(identity.labels)
                if missing and self._exhausted is None:
                    watch.wake()
        finally:
            watch.close()
            self._is_leading = False

    async def _complete(self) -> None:
        """Say when everything that was there at the start has its number."""
        watch: Watch[Labels] = Watch(self._claims, self._given_by_labels)
        waiting: set[Labels] = set()
        async for batch in watch:
            ready = self._claims.is_ready  # as of this batch
            claimed, given = self._claims.rows, self._given_by_labels.rows
            waiting = {one for one in waiting | batch if claimed(one) and not given(one)}
            if ready and not waiting:
                break
        watch.close()
        self._given.list_done()

    async def _give_remembered(self) -> None:
        async for numbers in Watch(self._remembered):
            for number in numbers:
                identity = self._remembered.first(number)
                if identity is not None:
                    self._given.put(number, identity)
                elif number in self._given.own and not self._is_used(number):
                    self._given.delete(number)
                # Else the store has lost what is in use. Traffic goes on; who leads puts it back.

    async def _collect(self) -> None:
        unused: dict[IdentityId, float] = {}  # and since when
        while True:
            await asyncio.sleep(self.LOOK_EVERY)
            if not self._claims.is_ready:
                continue
            now = asyncio.get_running_loop().time()
            unused = {n: unused.get(n, now) for n in self._given.own if not self._is_used(n)}
            old = [n for n, since in unused.items() if now >= since + self.UNUSED_FOR]
            if self._is_leading:
                await self._forget([n for n in old if n in self._memory.own])
            for number in old:
                if number not in self._memory.own:
                    self._given.delete(number)

    async def _forget(self, numbers: Sequence[IdentityId]) -> None:
        if not numbers:
            return
        try:
            await self._store.remove(numbers)
        except OSError as error:  # tried again at the next look
            log.warning("unused identities stay: %s", error)
        else:
            log.info("%d identities were unused for long, and are forgotten", len(numbers))
            for number in numbers:
                self._memory.delete(number)

    def _is_used(self, number: IdentityId) -> bool:
        """Whether pods have it: of two numbers for the same labels the lower one counts."""
        labels = self._given.own[number].labels
        return bool(self._claims.rows(labels)) and number == min(self._given_by_labels.rows(labels))

    def _is_forgotten(self, labels: Labels) -> bool:
        """Whether it has pods, and no number that is remembered."""
        return bool(self._claims.rows(labels)) and not self._remembered_by_labels.rows(labels)

    def _numbered(self, missing: Iterable[Labels]) -> list[Identity]:
        """A number for each: the one that it has, or a free one while there are any."""
        found = []
        taken = {*self._given.own, *self._memory.own}
        was_exhausted, self._exhausted = self._exhausted, None
        for labels in sorted(missing):
            number = min(self._given_by_labels.rows(labels), default=None)
            if number is None or number in self._memory.own:
                number = self._free_number(labels, taken)
            if number is None:
                self._exhausted = (
                    f"all {len(self._numbers)} identities of this cluster are taken: too many "
                    "pods have labels of their own: see `show identities`"
                )
                if was_exhausted is None:
                    log.warning("%s", self._exhausted)
                break
            taken.add(number)
            found.append(Identity(number, labels))
        return found

    def _free_number(self, labels: Labels, taken: Collection[IdentityId]) -> IdentityId | None:
        size = len(self._numbers)
        if len(taken) >= size:
            return None
        start = preferred(labels)
        candidates = (IdentityId(self._numbers[(start + step) % size]) for step in range(size))
        return next((number for number in candidates if number not in taken), None)

    async def _add(self, identities: Sequence[Identity]) -> Iterable[Identity]:
        """Try until it succeeds: nobody may read a number that may be forgotten."""
        while identities:
            try:
                remembered = await self._store.add(identities)
            except OSError as error:
                problem = f"new identities wait: they cannot be remembered: {error}"
                if problem != self._store_problem:
                    log.warning("%s", problem)
                self._store_problem = problem
                await asyncio.sleep(self.RETRY_AFTER)
            else:
                self._store_problem = None
                return remembered
        return ()


def preferred(labels: Labels) -> int:
    """A number that is the same for the same labels in every process and version."""
    text = "".join(f"{source}:{key}={value};" for source, key, value in labels)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
