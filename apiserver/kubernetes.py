"""The Kubernetes API as the source of a cluster's state."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final, Generic, TypeVar

import msgspec

from clustermesh.health import Health
from clustermesh.kube import Kube, Resource, kube_source
from clustermesh.model import ObjectName
from clustermesh.state import Source, Table, replicate

from .manifests import Problem, check
from .objects import AnyObject, EndpointSlice, MeshNode, Namespace, Node, Pod, Service
from .tables import Objects

T = TypeVar("T", bound=AnyObject)

_RESOURCES: Final[Mapping[type[Any], Resource]] = {
    Namespace: Resource("v1", "namespaces"),
    Node: Resource("v1", "nodes"),
    MeshNode: Resource("clustermesh.io/v1alpha1", "meshnodes"),
    Pod: Resource("v1", "pods"),
    Service: Resource("v1", "services"),
    EndpointSlice: Resource("discovery.k8s.io/v1", "endpointslices"),
}


class Kubernetes:
    """Keeps the tables of `objects` equal to what the API server says."""

    def __init__(self, kube: Kube, objects: Objects) -> None:
        self._kinds = [_Kind(kube, kind, table) for kind, table in objects.by_kind.items()]

    @property
    def listed(self) -> bool:
        """See Source."""
        return all(kind.writer.listed for kind in self._kinds)

    @property
    def count(self) -> int:
        """See Source."""
        return sum(len(kind.writer.own) for kind in self._kinds)

    @property
    def problems(self) -> list[Problem]:
        """See Source."""
        return problems_of(kind.health for kind in self._kinds)

    async def run(self) -> None:
        """See Source."""
        async with asyncio.TaskGroup() as tasks:
            for kind in self._kinds:
                tasks.create_task(replicate(kind.source(), kind.writer), name=kind.health.name)


class _Kind(Generic[T]):
    """One kind of object: the API has a list and a watch for each."""

    def __init__(self, kube: Kube, kind: type[T], table: Table[ObjectName, T]) -> None:
        self.health: Final = Health(_RESOURCES[kind].plural)
        self.writer: Final = table.writer("kubernetes")
        self._kube = kube
        self._resource = _RESOURCES[kind]
        self._decoder = msgspec.json.Decoder(kind)

    def source(self) -> Source[ObjectName, T]:
        return kube_source(
            self._kube, self._resource, self._decode, lambda name: name, health=self.health
        )

    def _decode(self, raw: msgspec.Raw) -> tuple[ObjectName, T]:
        item = self._decoder.decode(raw)
        check(item)
        return item.key, item


def problems_of(healths: Iterable[Health]) -> list[Problem]:
    """What cannot be read at present, and why; and which objects make no sense."""
    down: dict[str, list[str]] = {}
    bad: list[Problem] = []
    for health in healths:
        if not health.connected and health.last_error:
            down.setdefault(health.last_error, []).append(health.name)
        bad += (Problem(f"{health.name} {name}", why) for name, why in health.skipped.items())
    return [*(Problem(", ".join(names), error) for error, names in down.items()), *bad]
