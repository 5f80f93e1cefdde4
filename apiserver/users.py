"""
Who may read what in our etcd. A user is the common name of a client certificate.

An etcd that lost its data has lost its users too, and lets everybody in who has a certificate. So
users are not set up once, but kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from clustermesh.etcd.auth import ROOT, Auth, Permission, readable
from clustermesh.etcd.client import Etcd
from clustermesh.etcd.errors import EtcdError
from clustermesh.model import ClusterName
from clustermesh.peers import peer_files

# STABLE API: the users that certificates are made for; `remote` is for Cilium peers.
REMOTE: Final = "remote"
_REMOTE_PREFIX: Final = "remote-"
_LOOK_EVERY: Final = 5.0  # seconds

log = logging.getLogger(__name__)


class Access(msgspec.Struct, frozen=True):
    """The users of an etcd with their one role each, and what the roles may read."""

    users: Mapping[str, str]
    roles: Mapping[str, frozenset[Permission]]


def access(cluster: ClusterName, remotes: Iterable[ClusterName]) -> Access:
    """
    Return who may read what in the etcd of `cluster`.

    Args:
        remotes: the clusters that read from us.
    """
    local = f"local-{cluster}"
    return Access(
        users={
            ROOT: ROOT,
            f"admin-{cluster}": ROOT,
            local: local,
            REMOTE: REMOTE,
            **{f"{_REMOTE_PREFIX}{remote}": REMOTE for remote in remotes},
        },
        roles={
            local: frozenset({readable("cilium/"), readable("clustermesh/local/")}),
            REMOTE: frozenset(
                {
                    readable("cilium/.heartbeat"),
                    readable("cilium/state/"),
                    readable(f"cilium/cluster-config/{cluster}"),
                    readable(f"cilium/synced/{cluster}/"),
                }
            ),
        },
    )


class Users:
    """Keeps the users of an etcd, and one for each cluster that is connected."""

    def __init__(self, etcd: Etcd, cluster: ClusterName, clusters_dir: Path | None) -> None:
        """
        Args:
            clusters_dir: see `peer_files`; None: there is only the user `remote`.
        """
        self.set_up = asyncio.Event()
        """Nobody can read what they may not. Not before this may anything be written."""
        self.last_error: str | None = None
        self._etcd = etcd
        self._cluster = cluster
        self._clusters_dir = clusters_dir
        self._remotes: Collection[ClusterName] = ()
        self._changed = asyncio.Event()
        self._set_up_in = 0  # etcd's own id for the data that it has
        self._one_at_a_time = asyncio.Lock()

    async def ensure(self) -> None:
        """
        Have the users set up in this very etcd. To be called before it is filled with anything.

        Raises:
            EtcdError: nobody is kept from anything, so nothing may be written.
        """
        async with self._one_at_a_time:
            # With plain text on loopback there are no certificates, and so no users.
            if self._etcd.endpoint.tls:
                data = (await self._etcd.status()).header.cluster_id
                if data != self._set_up_in:
                    await set_up_users(self._etcd, self._cluster, self._remotes)
                    self._set_up_in = data
            self.set_up.set()

    async def run(self) -> None:
        """Keep the users until cancelled."""
        if not self._etcd.endpoint.tls:
            await self.ensure()
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="clusters with a user")
            while True:
                self._changed.clear()
                self._set_up_in = 0  # look at all of it, and not only whether it is the same etcd
                try:
                    await self.ensure()
                except EtcdError as error:
                    if str(error) != self.last_error:
                        log.warning("users: %s", error)
                    self.last_error = str(error)
                else:
                    self.last_error = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY):
                        await self._changed.wait()

    async def _follow(self) -> None:
        if self._clusters_dir is not None:
            async for files in peer_files(self._clusters_dir, self._cluster):
                self._remotes = tuple(files)
                self._changed.set()


async def set_up_users(etcd: Etcd, cluster: ClusterName, remotes: Iterable[ClusterName]) -> None:
    """
    Bring users and roles in line with `access`, then switch authentication on.

    Idempotent, and writes only what differs: each change makes etcd drop what it has cached about
    everyone's permissions. A remote cluster that is not named any more loses its user. Users with
    other names are left be, but for the role `root`: in an etcd that lost its data, whoever had a
    certificate could have given it to themselves.

    Raises:
        EtcdError: call it again.
    """
    auth, wanted = Auth(etcd), access(cluster, remotes)
    roles, users = await auth.roles(), await auth.users()
    for role, permissions in wanted.roles.items():
        if role not in roles:
            await auth.add_role(role)
        await auth.set_permissions(role, permissions)
    for user, role in wanted.users.items():
        if user not in users:
            await auth.add_user(user)
        actual = await auth.roles_of(user) if user in users else set()
        if role not in actual:
            await auth.grant_role(user, role)
        for other in sorted(actual - {role}) if role != ROOT else ():
            await auth.revoke_role(user, other)
    for user in sorted(users - wanted.users.keys()):
        if user.startswith(_REMOTE_PREFIX):
            await auth.delete_user(user)
        elif ROOT in await auth.roles_of(user):
            log.warning("user %s had the role root, and does no more", user)
            await auth.revoke_role(user, ROOT)
    await auth.enable()
