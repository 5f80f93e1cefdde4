"""
Numbers for sets of labels, stable over restarts.

A number starts its search at a hash of the labels, so that the same labels mostly get the same
number even where nothing is remembered. What makes it certain is the store: a number is written
there before anybody can read it in etcd, which is only a cache and may be empty after a restart.
A number is never given to other labels.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from certs.store import write_atomically
from clustermesh.errors import UserError
from clustermesh.model import Identity, IdentityId, IPAddress
from clustermesh.state import Index, Watch, Writer

from .rules.endpoints import Claim, Labels

log = logging.getLogger(__name__)


class Store(Protocol):
    """Where numbers outlive the process."""

    async def load(self) -> Iterable[Identity]:
        """Everything that was ever saved. Raises OSError, or UserError if it makes no sense."""

    async def save(self, identities: Iterable[Identity]) -> None:
        """Remember exactly these. Raises OSError, and then remembers what it did before."""


class FileStore:
    """A JSON file with a list of identities, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def load(self) -> Iterable[Identity]:
        """See Store."""
        try:
            text = await asyncio.to_thread(self._path.read_bytes)
        except FileNotFoundError:
            return ()
        try:
            return msgspec.json.decode(text, type=list[Identity])
        except msgspec.DecodeError as error:
            raise UserError(
                f"{self._path}: {error}",
                hint="it remembers the identities; restore it, or remove it to number them anew",
            ) from None

    async def save(self, identities: Iterable[Identity]) -> None:
        """See Store."""
        text = msgspec.json.format(msgspec.json.encode(list(identities)))
        await asyncio.to_thread(write_atomically, {self._path: (text, 0o644)})


class Allocator:
    """Gives a number to every set of labels that `claims` has, and writes it to `writer`."""

    RETRY_AFTER: Final = 5.0  # seconds

    def __init__(
        self,
        claims: Index[Labels, IPAddress, Claim],
        writer: Writer[IdentityId, Identity],
        numbers: range,
        store: Store,
    ) -> None:
        """
        Args:
            numbers: those that this cluster may give.
        """
        self.problem: str | None = None
        """Why numbers cannot be remembered at present, for `status`."""
        self._claims = claims
        self._writer = writer
        self._numbers = numbers
        self._store = store
        self._number_of: dict[Labels, IdentityId] = {}

    async def run(self) -> None:
        """
        Allocate until cancelled.

        Raises:
            UserError: what the store holds makes no sense, or belongs to another cluster id.
        """
        for identity in await self._store.load():
            if identity.id not in self._numbers:
                raise UserError(
                    f"identity {identity.id} is remembered, but not one of this cluster id "
                    f"({self._numbers[0]}-{self._numbers[-1]})",
                    hint="a cluster keeps its id: put it back, or remove what is remembered",
                )
            self._number_of[identity.labels] = identity.id
            self._writer.put(identity.id, identity)
        watch: Watch[Labels] = Watch(self._claims)
        async for batch in watch:
            ready = self._claims.is_ready  # as of this batch: while it is saved, more may come
            new = sorted(labels for labels in batch if self._is_new(labels))
            if new:
                self._number_of.update(zip(new, self._free_numbers(new), strict=True))
                await self._save()
                for labels in new:
                    number = self._number_of[labels]
                    self._writer.put(number, Identity(number, labels))
            if ready:
                self._writer.list_done()

    def _is_new(self, labels: Labels) -> bool:
        return labels not in self._number_of and bool(self._claims.rows(labels))

    def _free_numbers(self, wanted: Iterable[Labels]) -> Iterable[IdentityId]:
        taken = set(self._number_of.values())
        for labels in wanted:
            if len(taken) == len(self._numbers):
                raise UserError(
                    f"all {len(self._numbers)} identities of this cluster are taken",
                    hint="too many pods have labels of their own: see `show identities`",
                )
            place = preferred(labels) % len(self._numbers)
            while self._numbers[place] in taken:
                place = (place + 1) % len(self._numbers)
            taken.add(IdentityId(self._numbers[place]))
            yield IdentityId(self._numbers[place])

    async def _save(self) -> None:
        """Save, and again until it succeeds: a number that may be forgotten must not be read."""
        while True:
            try:
                await self._store.save(
                    Identity(number, labels) for labels, number in self._number_of.items()
                )
            except OSError as error:
                if self.problem is None:
                    log.warning("new identities wait: they cannot be remembered: %s", error)
                self.problem = f"new identities wait: they cannot be remembered: {error}"
                await asyncio.sleep(self.RETRY_AFTER)
            else:
                self.problem = None
                return


def preferred(labels: Labels) -> int:
    """A number that is the same for the same labels in every process and version."""
    text = "".join(f"{source}:{key}={value};" for source, key, value in labels)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
