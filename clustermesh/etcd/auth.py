from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final, NamedTuple

from . import rpc_pb2 as rpc
from .client import Etcd, prefix_end

ROOT: Final = "root"
"""STABLE API: the user, and the role, that may do everything. etcd has the role built in."""


class Access(enum.IntEnum):
    """What a permission allows."""

    READ = 0
    WRITE = 1
    READ_WRITE = 2


class Permission(NamedTuple):
    """Access to a range of keys; to one key where the end is empty."""

    key: bytes
    end: bytes = b""
    access: Access = Access.READ


def readable(key: str) -> Permission:
    """Allow to read `key`, or, if it ends in `/`, everything below it."""
    raw = key.encode()
    return Permission(raw, prefix_end(raw) if key.endswith("/") else b"")


class Auth:
    """The users and roles of an etcd. Its users are the names in client certificates."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd

    async def enable(self) -> None:
        """Switch authentication on; needs a user `root` with the role `root`. Idempotent."""
        request, answer = rpc.AuthEnableRequest(), rpc.AuthEnableResponse
        await self._etcd.call("Auth/AuthEnable", request, answer, "enable authentication")

    async def users(self) -> set[str]:
        """All users."""
        request, answer = rpc.AuthUserListRequest(), rpc.AuthUserListResponse
        return set((await self._etcd.call("Auth/UserList", request, answer, "list users")).users)

    async def add_user(self, name: str) -> None:
        """Add a user who proves to be it with a certificate, and has no password."""
        options = rpc.UserAddOptions(no_password=True)
        request = rpc.AuthUserAddRequest(name=name, options=options)
        what = f"add user {name}"
        await self._etcd.call("Auth/UserAdd", request, rpc.AuthUserAddResponse, what)

    async def delete_user(self, name: str) -> None:
        """Delete a user. What it watches already it goes on watching until it reconnects."""
        request = rpc.AuthUserDeleteRequest(name=name)
        what = f"delete user {name}"
        await self._etcd.call("Auth/UserDelete", request, rpc.AuthUserDeleteResponse, what)

    async def roles_of(self, user: str) -> set[str]:
        """The roles of a user."""
        request = rpc.AuthUserGetRequest(name=user)
        what = f"read the roles of {user}"
        answer = await self._etcd.call("Auth/UserGet", request, rpc.AuthUserGetResponse, what)
        return set(answer.roles)

    async def grant_role(self, user: str, role: str) -> None:
        """Give a role to a user."""
        request = rpc.AuthUserGrantRoleRequest(user=user, role=role)
        what = f"give role {role} to {user}"
        await self._etcd.call("Auth/UserGrantRole", request, rpc.AuthUserGrantRoleResponse, what)

    async def revoke_role(self, user: str, role: str) -> None:
        """Take a role from a user."""
        request = rpc.AuthUserRevokeRoleRequest(name=user, role=role)
        what = f"take role {role} from {user}"
        await self._etcd.call("Auth/UserRevokeRole", request, rpc.AuthUserRevokeRoleResponse, what)

    async def roles(self) -> set[str]:
        """All roles, but for the built-in one."""
        request, answer = rpc.AuthRoleListRequest(), rpc.AuthRoleListResponse
        return set((await self._etcd.call("Auth/RoleList", request, answer, "list roles")).roles)

    async def add_role(self, name: str) -> None:
        """Add a role, which may do nothing yet."""
        request = rpc.AuthRoleAddRequest(name=name)
        what = f"add role {name}"
        await self._etcd.call("Auth/RoleAdd", request, rpc.AuthRoleAddResponse, what)

    async def permissions(self, role: str) -> set[Permission]:
        """What a role may do."""
        request = rpc.AuthRoleGetRequest(role=role)
        what = f"read role {role}"
        answer = await self._etcd.call("Auth/RoleGet", request, rpc.AuthRoleGetResponse, what)
        return {Permission(p.key, p.range_end, Access(p.perm_type)) for p in answer.perm}

    async def set_permissions(self, role: str, wanted: Iterable[Permission]) -> None:
        """
        Make `wanted` all that a role may do, writing only what differs.

        New permissions are given before others are taken, so that nobody is locked out in between.
        """
        wanted = set(wanted)
        actual = await self.permissions(role)
        for permission in sorted(wanted - actual):
            key, end, access = permission
            granted = rpc.Permission(
                perm_type=rpc.Permission.Type.Name(access), key=key, range_end=end
            )
            request = rpc.AuthRoleGrantPermissionRequest(name=role, perm=granted)
            await self._etcd.call(
                "Auth/RoleGrantPermission",
                request,
                rpc.AuthRoleGrantPermissionResponse,
                f"let role {role} use {key.decode()}",
            )
        kept = {(key, end) for key, end, _ in wanted}
        for key, end in sorted({(key, end) for key, end, _ in actual} - kept):
            await self._etcd.call(
                "Auth/RoleRevokePermission",
                rpc.AuthRoleRevokePermissionRequest(role=role, key=key, range_end=end),
                rpc.AuthRoleRevokePermissionResponse,
                f"keep role {role} from {key.decode()}",
            )
