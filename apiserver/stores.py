"""Where identities outlive the apiserver: a file, or MeshIdentities of the Kubernetes API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from clustermesh.errors import BadRowError, UserError
from clustermesh.files import replace_file
from clustermesh.health import Health
from clustermesh.kube import ConflictError, Kube, KubeError, Resource, kube_source
from clustermesh.model import Identity, IdentityId, ObjectName
from clustermesh.state import Event, Listed, Listing, Put, Source

from .kubernetes import problems_of
from .manifests import Problem
from .rules.endpoints import Labels

log = logging.getLogger(__name__)

_RETRY_AFTER: Final = 5.0  # seconds

_AT_ONCE: Final = 8
"""MeshIdentities created at a time: the API server lets us, and others have work for it too."""


class FileStore:
    """A JSON file with a list of identities, replaced as a whole. Of one process only."""

    def __init__(self, path: Path, numbers: range) -> None:
        """
        Args:
            numbers: those that this cluster may give.
        """
        self._path = path
        self._numbers = numbers
        self._known: dict[IdentityId, Identity] = {}
        self._problem: str | None = None

    @property
    def problems(self) -> Sequence[Problem]:
        """See Store."""
        return (Problem(str(self._path), self._problem),) if self._problem else ()

    async def follow(self) -> AsyncIterator[Sequence[Event[IdentityId, Identity]]]:
        """See Store. Ends: nobody else writes the file."""
        while True:
            try:
                self._known = {identity.id: identity for identity in await self._load()}
            except OSError as error:
                problem = f"identities wait: what is remembered cannot be read: {error}"
                if problem != self._problem:
                    log.warning("%s", problem)
                self._problem = problem
                await asyncio.sleep(_RETRY_AFTER)
            else:
                self._problem = None
                yield [Listing(), *(Put(*item) for item in self._known.items()), Listed()]
                return

    async def add(self, identities: Sequence[Identity]) -> Iterable[Identity]:
        """See Store."""
        await self._save({identity.id: identity for identity in identities} | self._known)
        return [self._known[identity.id] for identity in identities]

    async def remove(self, numbers: Collection[IdentityId]) -> None:
        """See Store."""
        await self._save({n: row for n, row in self._known.items() if n not in numbers})

    async def _load(self) -> Iterable[Identity]:
        try:
            text = await asyncio.to_thread(self._path.read_bytes)
        except FileNotFoundError:
            return ()
        try:
            identities = msgspec.json.decode(text, type=list[Identity])
        except msgspec.DecodeError as error:
            raise UserError(
                f"{self._path}: {error}",
                hint="it remembers the identities; restore it, or remove it to number them anew",
            ) from None
        for identity in identities:
            if identity.id not in self._numbers:
                raise UserError(
                    f"identity {identity.id} is remembered, but {_not_ours(self._numbers)}",
                    hint="a cluster keeps its id: put it back, or remove what is remembered",
                )
        return identities

    async def _save(self, known: dict[IdentityId, Identity]) -> None:
        text = msgspec.json.format(msgspec.json.encode(list(known.values())))
        await asyncio.to_thread(replace_file, self._path, text, mode=0o644)
        self._known = known


class _Metadata(msgspec.Struct, frozen=True):
    name: str


class _Spec(msgspec.Struct, frozen=True):
    labels: tuple[str, ...]


class _MeshIdentity(msgspec.Struct, frozen=True):
    metadata: _Metadata
    spec: _Spec


# STABLE API: an object for each number, which is its name, in decimal.
_MESH_IDENTITIES: Final = Resource("clustermesh.io/v1alpha1", "meshidentities")


class KubeStore:
    """MeshIdentities. As their names are the numbers, no number can be given twice."""

    def __init__(self, kube: Kube, numbers: range) -> None:
        """
        Args:
            numbers: those that this cluster may give.
        """
        self._kube = kube
        self._numbers = numbers
        self._health = Health(_MESH_IDENTITIES.plural)
        self._decoder = msgspec.json.Decoder(_MeshIdentity)

    @property
    def problems(self) -> Sequence[Problem]:
        """See Store."""
        return problems_of((self._health,))

    def follow(self) -> Source[IdentityId, Identity]:
        """See Store. One that makes no sense is not used, and never removed."""
        return kube_source(
            self._kube, _MESH_IDENTITIES, self._decode, self._number, health=self._health
        )

    async def add(self, identities: Sequence[Identity]) -> Iterable[Identity]:
        """See Store."""
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def add(identity: Identity) -> Identity:
            async with at_once:
                return await self._add(identity)

        found = await asyncio.gather(*map(add, identities), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException):
                raise error
        return [identity for identity in found if isinstance(identity, Identity)]

    async def remove(self, numbers: Collection[IdentityId]) -> None:
        """See Store."""
        for number in numbers:
            await self._kube.delete(_MESH_IDENTITIES, str(number))

    async def _add(self, identity: Identity) -> Identity:
        name = str(identity.id)
        labels = [f"{source}:{key}={value}" for source, key, value in identity.labels]
        try:
            await self._kube.create(
                _MESH_IDENTITIES,
                {
                    "apiVersion": _MESH_IDENTITIES.api,
                    "kind": "MeshIdentity",
                    "metadata": {"name": name},
                    "spec": {"labels": labels},
                },
            )
        except ConflictError:
            there = await self._kube.get(_MESH_IDENTITIES, name, _MeshIdentity)
            try:
                return Identity(identity.id, _labels(there))
            except BadRowError as error:  # the schema of the CRD is not ours
                raise KubeError(f"{_MESH_IDENTITIES.plural} {name}: {error}") from None
        return identity

    def _decode(self, raw: msgspec.Raw) -> tuple[IdentityId, Identity]:
        item = self._decoder.decode(raw)
        number = self._number(ObjectName("", item.metadata.name))
        return number, Identity(number, _labels(item))

    def _number(self, name: ObjectName) -> IdentityId:
        number = int(name.name) if name.name.isascii() and name.name.isdecimal() else 0
        if number not in self._numbers:
            raise BadRowError(f"it is {_not_ours(self._numbers)}: had the cluster another id?")
        return IdentityId(number)


def _labels(item: _MeshIdentity) -> Labels:
    found = []
    for text in item.spec.labels:
        source, colon, label = text.partition(":")
        key, equals, value = label.partition("=")
        if not colon or not equals:
            raise BadRowError(f"spec.labels: {text!r} is not source:key=value")
        found.append((source, key, value))
    return tuple(sorted(found))


def _not_ours(numbers: range) -> str:
    return f"not one of this cluster id ({numbers[0]}-{numbers[-1]})"
