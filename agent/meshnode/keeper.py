from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import Final, Protocol

from agent.own import Known, OwnNode
from agent.settings import AgentSettings
from clustermesh.backoff import Backoff
from clustermesh.daemon import Daemon
from clustermesh.errors import UserError
from clustermesh.health import Health
from clustermesh.status import MeshNodeStatus

from .directory import ManifestFile

log = logging.getLogger(__name__)

_LOOK_EVERY: Final = 300.0  # seconds
_RETRY_MAX: Final = 60.0  # seconds


class Place(Protocol):
    """Where the MeshNode of one node is kept."""

    async def write(self, known: Known) -> None:
        """
        Make it say what is known: write what differs, and nothing where nothing does.

        Raises:
            OSError: it cannot be written; with `retry_after`, not before so many seconds.
            UserError: somebody gave us credentials that are none.
        """


async def keep_mesh_node(
    settings: AgentSettings, daemon: Daemon, own: OwnNode, *, look_every: float = _LOOK_EVERY
) -> None:
    """
    Keep this node's MeshNode as it should be until cancelled, and show in `/status` how that goes.

    Returns at once where there is no place for it: without a directory and without credentials for
    Kubernetes, as in a pod that was given no service account.

    Args:
        look_every: seconds.
    """
    if settings.mesh_node_dir is not None:
        place = ManifestFile(settings.mesh_node_dir, settings.node_name)
        await _Keeper(place, settings.node_name, own, daemon).run(look_every)
    elif settings.knows_kubernetes:
        from .kubernetes import open_mesh_nodes  # noqa: PLC0415 - takes memory that others save

        try:
            opened = await open_mesh_nodes(settings, daemon.version)
        except UserError as error:
            if settings.kubeconfig is None and settings.context is None:
                log.info("no MeshNode is written: %s", error)
                return
            log.warning("no MeshNode is written: %s", error)
            reason = str(error)
            daemon.add_status("mesh_node", lambda: MeshNodeStatus(last_error=reason))
            return
        async with opened as kubernetes:
            await _Keeper(kubernetes, settings.node_name, own, daemon).run(look_every)


class _Keeper:
    """Has the MeshNode written when something is learned, and looks after it now and then."""

    def __init__(self, place: Place, name: str, own: OwnNode, daemon: Daemon) -> None:
        self._place = place
        self._own = own
        self._health = Health(f"MeshNode {name}")
        daemon.add_status("mesh_node", self._status)

    def _status(self) -> MeshNodeStatus:
        health = self._health
        return MeshNodeStatus(
            written=health.connected, last_error=None if health.connected else health.last_error
        )

    async def run(self, look_every: float) -> None:
        """Look every so many seconds, sooner after a failure and when something is learned."""
        await self._own.complete()
        backoff = Backoff(first=1.0, most=min(_RETRY_MAX, look_every))
        while True:
            wait = look_every
            try:
                await self._place.write(self._own.known)
            except (OSError, UserError) as error:
                self._health.down(error if isinstance(error, OSError) else OSError(str(error)))
                wait = max(backoff.next(), getattr(error, "retry_after", 0.0))
            else:
                self._health.up()
                backoff.reset()
            with contextlib.suppress(TimeoutError):
                # Agents that a rollout started together come apart.
                async with asyncio.timeout(wait * random.uniform(0.8, 1.2)):
                    await self._own.changed()
