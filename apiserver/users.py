"""Who may read what in our etcd. A user is the common name of a client certificate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from clustermesh.etcd.auth import ROOT, Auth, Permission, readable
from clustermesh.etcd.client import Etcd
from clustermesh.model import ClusterName

# STABLE API: the users that certificates are made for; `remote` is for Cilium peers.
REMOTE: Final = "remote"
_REMOTE_PREFIX: Final = "remote-"


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


async def set_up_users(etcd: Etcd, cluster: ClusterName, remotes: Iterable[ClusterName]) -> None:
    """
    Bring users and roles in line with `access`, then switch authentication on.

    Idempotent, and writes only what differs: each change makes etcd drop what it has cached about
    everyone's permissions. A remote cluster that is not named any more loses its user. Users and
    roles with other names are left be, and nothing is taken from `root`.

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
    await auth.enable()
