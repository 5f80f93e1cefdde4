"""
What this node's agent tells its own apiserver: its MeshNode (clustermesh.io/v1alpha1).

The only part of the agent that talks to Kubernetes, and only where it has credentials for it. It
asks now and then and does not watch: a thousand agents that each keep a watch open cost an API
server more than a question every few minutes, and nobody else has a reason to alter the object.
What fails here stops no traffic, so it is shown and tried again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from clustermesh.backoff import Backoff
from clustermesh.daemon import Daemon
from clustermesh.errors import UserError
from clustermesh.health import Health
from clustermesh.kube import (
    Kube,
    KubeConfig,
    KubeError,
    NotFoundError,
    Resource,
    in_cluster,
    read_kubeconfig,
)
from clustermesh.status import MeshNodeStatus

from .settings import AgentSettings

log = logging.getLogger(__name__)

_LOOK_EVERY: Final = 300.0  # seconds
_RETRY_MAX: Final = 60.0  # seconds

_NODES: Final = Resource("v1", "nodes")
_MESH_NODES: Final = Resource("clustermesh.io/v1alpha1", "meshnodes")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


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


async def keep_mesh_node(
    settings: AgentSettings, daemon: Daemon, *, look_every: float = _LOOK_EVERY
) -> None:
    """
    Keep this node's MeshNode as it should be until cancelled, and show in `/status` how that goes.

    Returns at once in a pod that was given no service account: then nothing shall be written.

    Args:
        look_every: seconds.
    """
    try:
        config = await asyncio.to_thread(_kube_config, settings)
    except UserError as error:
        if settings.kubeconfig is None and settings.context is None:
            log.info("no MeshNode is written: %s", error)
            return
        log.warning("no MeshNode is written: %s", error)
        reason = str(error)
        daemon.add_status("mesh_node", lambda: MeshNodeStatus(last_error=reason))
        return
    async with Kube(config) as kube:
        keeper = _Keeper(kube, settings.node_name, daemon.version)
        daemon.add_status("mesh_node", keeper.status)
        await keeper.run(look_every)


def _kube_config(settings: AgentSettings) -> KubeConfig:
    if settings.kubeconfig is None and settings.context is None:
        return in_cluster()
    paths = () if settings.kubeconfig is None else (settings.kubeconfig,)
    return read_kubeconfig(paths, settings.context)


class _Keeper:
    """Writes one MeshNode: what differs from what we know, and nothing when nothing does."""

    def __init__(self, kube: Kube, name: str, version: str) -> None:
        self._kube = kube
        self._name = name
        self._boot_id = _BOOT_ID.read_text().strip()
        started_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self._status = {"version": version, "startedAt": started_at}
        self._health = Health(f"MeshNode {name}")

    def status(self) -> MeshNodeStatus:
        """Whether the object is as it should be, as far as we know."""
        health = self._health
        return MeshNodeStatus(
            written=health.connected, last_error=None if health.connected else health.last_error
        )

    async def run(self, look_every: float) -> None:
        """Look every so many seconds, sooner after a failure."""
        backoff = Backoff(first=1.0, most=min(_RETRY_MAX, look_every))
        while True:
            wait = look_every
            try:
                await self._write()
            except (KubeError, UserError) as error:
                down = error if isinstance(error, KubeError) else KubeError(str(error))
                self._health.down(down)
                wait = max(backoff.next(), down.retry_after)
            else:
                self._health.up()
                backoff.reset()
            # Agents that a rollout started together come apart.
            await asyncio.sleep(wait * random.uniform(0.8, 1.2))

    async def _write(self) -> None:
        try:
            node = await self._kube.get(_NODES, self._name, _Node)
        except NotFoundError as error:
            raise KubeError(f"{error}: is --node-name its name in Kubernetes?") from None
        owners, spec = [self._owner(node)], self._spec(node)
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

    def _spec(self, node: _Node) -> dict[str, Any]:
        addresses = dict.fromkeys(
            address
            for address in node.status.addresses
            if address.type in {"InternalIP", "ExternalIP"}
        )
        return {"bootID": self._boot_id, "addresses": msgspec.to_builtins(list(addresses))}


def _differing(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that makes `wanted` of what is there; empty if it is that already."""
    names = there.keys() | wanted.keys()
    return {name: wanted.get(name) for name in names if there.get(name) != wanted.get(name)}
