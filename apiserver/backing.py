"""Where a cluster's state is read and its identities are remembered: Kubernetes, or a directory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, Protocol
from uuid import uuid4

from clustermesh.kube import Election, Kube, KubeConfig, in_cluster, read_kubeconfig

from .allocator import Store
from .directory import Directory
from .kubernetes import Kubernetes
from .settings import ApiserverSettings
from .source import Source
from .stores import FileStore, KubeStore
from .tables import Objects

# STABLE API: what replicas of different versions elect their leader with.
_LEASE: Final = "clustermesh-apiserver"


class Leadership(Protocol):
    """
    Which of several replicas writes to what they share.

    That is the API server only. Each replica has an etcd beside it, and keeps all of it, so that
    an agent that loses one replica finds the same keys and canaries at the other: it is warm.
    """

    @property
    def leader(self) -> str:
        """The replica that leads, as far as we know; empty if there is but one."""

    @property
    def problem(self) -> str | None:
        """Why it is not known who leads."""

    async def run(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `lead()` whenever we lead, and cancel it when we do not any more."""


class Alone:
    """There is one replica, and it leads."""

    leader = ""
    problem = None

    async def run(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """See Leadership."""
        await lead()


class Backing(NamedTuple):
    """What stands behind an apiserver."""

    source: Source
    store: Store
    leadership: Leadership


@asynccontextmanager
async def open_backing(
    settings: ApiserverSettings, objects: Objects, numbers: range
) -> AsyncIterator[Backing]:
    """
    Open what the settings name.

    Args:
        numbers: the identities that the cluster may give.

    Raises:
        UserError: there are no credentials for the API server, or they make no sense.
    """
    if settings.directory is not None:
        file = settings.directory / ".identities.json"
        yield Backing(Directory(settings.directory, objects), FileStore(file, numbers), Alone())
        return
    config = await asyncio.to_thread(_kube_config, settings)
    async with Kube(config) as kube:
        candidate = f"{socket.gethostname()}_{uuid4()}"
        election = Election(kube, config.namespace, _LEASE, candidate)
        yield Backing(Kubernetes(kube, objects), KubeStore(kube, numbers), election)


def _kube_config(settings: ApiserverSettings) -> KubeConfig:
    if settings.kubeconfig is None and settings.context is None:
        return in_cluster()
    paths = () if settings.kubeconfig is None else (settings.kubeconfig,)
    return read_kubeconfig(paths, settings.context)
