"""
The MeshNode as an object of Kubernetes.

The only part of the agent that talks to Kubernetes, and only where it has credentials for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from agent.own import Known
from agent.settings import AgentSettings
from clustermesh.kube import (
    Kube,
    KubeConfig,
    KubeError,
    NotFoundError,
    Resource,
    in_cluster,
    read_kubeconfig,
)

_NODES: Final = Resource("v1", "nodes")
_MESH_NODES: Final = Resource("clustermesh.io/v1alpha1", "meshnodes")


class _NodeMetadata(msgspec.Struct, frozen=True):
    uid: str


class _NodeAddress(msgspec.Struct, frozen=True):
    type: str
    address: str


class _NodeStatus(msgspec.Struct, frozen=True):
    addresses: tuple[_NodeAddress, ...] = ()


class _Node(msgspec.Struct, frozen=True):
    metadata: _NodeMetadata
    status: _NodeStatus = _NodeStatus()


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    owner_references: list[dict[str, Any]] = []


class _MeshNode(msgspec.Struct, frozen=True):
    metadata: _Metadata = _Metadata()
    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}


async def open_mesh_nodes(
    settings: AgentSettings, version: str
) -> AbstractAsyncContextManager[MeshNodeObject]:
    """
    The MeshNode of this node, with a connection that lasts as long as the context.

    Raises:
        UserError: there are no credentials, or none that make sense.
    """
    config = await asyncio.to_thread(_kube_config, settings)

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[MeshNodeObject]:
        async with Kube(config) as kube:
            yield MeshNodeObject(kube, settings.node_name, version)

    return opened()


def _kube_config(settings: AgentSettings) -> KubeConfig:
    if settings.kubeconfig is None and settings.context is None:
        return in_cluster()
    paths = () if settings.kubeconfig is None else (settings.kubeconfig,)
    return read_kubeconfig(paths, settings.context)


class MeshNodeObject:
    """One MeshNode. It belongs to its Node, and goes with it."""

    def __init__(self, kube: Kube, name: str, version: str) -> None:
        self._kube = kube
        self._name = name
        started_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self._status = {"version": version, "startedAt": started_at}

    async def write(self, known: Known) -> None:
        """See Place."""
        try:
            node = await self._kube.get(_NODES, self._name, _Node)
        except NotFoundError as error:
            raise KubeError(f"{error}: is --node-name its name in Kubernetes?") from None
        owners, spec = [self._owner(node)], _spec(node, known)
        try:
            there = await self._kube.get(_MESH_NODES, self._name, _MeshNode)
        except NotFoundError:
            await self._kube.create(
                _MESH_NODES,
                {
                    "apiVersion": _MESH_NODES.api,
                    "kind": "MeshNode",
                    "metadata": {"name": self._name, "ownerReferences": owners},
                    "spec": spec,
                },
            )
            there = _MeshNode(_Metadata(owners), spec)
        changes: dict[str, Any] = {}
        if there.metadata.owner_references != owners:
            changes["metadata"] = {"ownerReferences": owners}
        if differing := _differing(there.spec, spec):
            changes["spec"] = differing
        if changes:
            await self._kube.patch(_MESH_NODES, self._name, changes)
        if differing := _differing(there.status, self._status):
            # What is created or changed as a whole keeps its status: that is written apart.
            await self._kube.patch(_MESH_NODES, f"{self._name}/status", {"status": differing})

    def _owner(self, node: _Node) -> dict[str, Any]:
        """The Node, so that Kubernetes removes the MeshNode of a node that is no more."""
        uid = node.metadata.uid
        return {"apiVersion": _NODES.api, "kind": "Node", "name": self._name, "uid": uid}


def _spec(node: _Node, known: Known) -> dict[str, Any]:
    addresses = dict.fromkeys(
        address for address in node.status.addresses if address.type in {"InternalIP", "ExternalIP"}
    )
    # By way of JSON, to be comparable with what is there: a tuple equals no list.
    as_read: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(known))
    return {**as_read, "addresses": msgspec.to_builtins(list(addresses))}


def _differing(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that makes `wanted` of what is there; empty if it is that already."""
    names = there.keys() | wanted.keys()
    return {name: wanted.get(name) for name in names if there.get(name) != wanted.get(name)}
