from __future__ import annotations

from collections.abc import Mapping

import pytest

from apiserver.users import Users, set_up_users
from certs.leaf import local, remote, root
from clustermesh.etcd import Auth, DeniedError, Etcd, EtcdError, Permission, Revision, readable
from clustermesh.model import ClusterName
from clustermesh.tests.etcd_server import EtcdServer

EAST, WEST, NORTH = ClusterName("east"), ClusterName("west"), ClusterName("north")

# The table "Who may read what": what each user may read in the etcd of the cluster east.
KEYS = (
    "cilium/.heartbeat",
    "cilium/state/nodes/v1/east/node1",
    "cilium/cluster-config/east",
    "cilium/synced/east/cilium/state/nodes/v1",
    "cilium/cluster-config/east2",
    "cilium/cluster-config/west",
    "cilium/synced/west/cilium/state/nodes/v1",
    "cilium/cache/nodes/v1/west/node1",
    "clustermesh/local/endpoints/10.1.0.7",
    "elsewhere",
)
SHARED, CILIUM = KEYS[:4], KEYS[:8]
MAY_READ: Mapping[str, tuple[str, ...]] = {
    "root": KEYS,
    "admin": KEYS,
    "local": KEYS[:9],
    "remote": SHARED,
    "remote-west": SHARED,
    "remote-north": (),  # has a certificate, but is no peer of ours
}


@pytest.fixture
def server(own_etcd_server: EtcdServer) -> EtcdServer:
    """An etcd, and certificates for everyone."""
    for profile in (root(), local("east"), remote(), remote("west"), remote("north")):
        own_etcd_server.issue(profile)
    return own_etcd_server


async def read(etcd: Etcd) -> tuple[str, ...]:
    """Which of the keys can be read."""
    found = []
    for key in KEYS:
        try:
            value = await etcd.get(key.encode())
        except DeniedError:
            continue
        assert value == b"1"
        found.append(key)
    return tuple(found)


async def test_each_user_can_read_what_the_table_says_and_nothing_else(server: EtcdServer) -> None:
    async with Etcd(server.config()) as etcd:
        for key in KEYS:
            await etcd.put(key.encode(), b"1")
        await set_up_users(etcd, EAST, [WEST])
    for user, keys in MAY_READ.items():
        async with Etcd(server.config(user)) as etcd:
            assert (user, await read(etcd)) == (user, keys)


async def test_only_root_and_the_apiserver_can_write(server: EtcdServer) -> None:
    async with Etcd(server.config()) as etcd:
        await set_up_users(etcd, EAST, [WEST])
    for user in MAY_READ:
        async with Etcd(server.config(user)) as etcd:
            if user in {"root", "admin"}:
                await etcd.put(KEYS[0].encode(), b"1")
                await etcd.delete(KEYS[0].encode())
                continue
            with pytest.raises(DeniedError, match=r"may not write cilium/\.heartbeat"):
                await etcd.put(KEYS[0].encode(), b"1")
            with pytest.raises(DeniedError, match=r"may not write cilium/\.heartbeat"):
                await etcd.delete(KEYS[0].encode())
            with pytest.raises(EtcdError):
                await Auth(etcd).add_user("intruder")


async def test_what_is_denied_is_said_with_user_and_key(server: EtcdServer) -> None:
    async with Etcd(server.config()) as etcd:
        await set_up_users(etcd, EAST, [WEST])
        at = await etcd.put(b"clustermesh/local/a", b"1")
    async with Etcd(server.config("remote-west")) as etcd:
        with pytest.raises(DeniedError) as read_denied:
            await etcd.get(b"clustermesh/local/a")
        with pytest.raises(DeniedError) as list_denied:
            await anext(etcd.range(b"cilium/"))
        with pytest.raises(DeniedError) as watch_denied:
            await anext(etcd.watch(b"clustermesh/local/", at))
    where = f"{server.url}: user remote-west may not"
    assert str(read_denied.value) == f"{where} read clustermesh/local/a"
    assert str(list_denied.value) == f"{where} read cilium/"
    assert str(watch_denied.value) == f"{where} watch clustermesh/local/"


async def test_a_peer_can_list_and_watch_the_prefixes_that_it_reads(server: EtcdServer) -> None:
    async with Etcd(server.config()) as etcd:
        await set_up_users(etcd, EAST, [WEST])
        at = await etcd.put(KEYS[1].encode(), b"1")
    async with Etcd(server.config("remote-west")) as etcd:
        for prefix in (b"cilium/state/nodes/v1/east/", b"cilium/synced/east/"):
            await anext(etcd.range(prefix))
            assert await anext(etcd.watch(prefix, Revision(at.cluster, at.number))) == []


async def test_setting_up_again_changes_nothing(server: EtcdServer) -> None:
    async with Etcd(server.config()) as etcd:
        for _ in range(3):
            await set_up_users(etcd, EAST, [WEST, NORTH])
        assert await Auth(etcd).users() == {
            *("root", "admin-east", "local-east", "remote", "remote-west", "remote-north"),
        }
        assert await Auth(etcd).roles() == {"local-east", "remote"}


async def test_permissions_and_roles_that_differ_are_put_right(server: EtcdServer) -> None:
    async with Etcd(server.config()) as etcd:
        await set_up_users(etcd, EAST, [WEST])
        auth = Auth(etcd)
        right = await auth.permissions("remote")
        wrong = {readable("clustermesh/local/"), Permission(b"cilium/state/", b"cilium/state0")}
        await auth.set_permissions("remote", wrong)
        assert await auth.permissions("remote") == wrong
        await auth.grant_role("remote-west", "root")
        await auth.grant_role("admin-east", "remote")
        await set_up_users(etcd, EAST, [WEST])
        assert await auth.permissions("remote") == right
        assert await auth.roles_of("remote-west") == {"remote"}
        assert await auth.roles_of("admin-east") == {"root", "remote"}


async def test_a_cluster_that_is_no_peer_any_more_is_locked_out(server: EtcdServer) -> None:
    async with Etcd(server.config()) as etcd:
        await etcd.put(KEYS[0].encode(), b"1")
        await set_up_users(etcd, EAST, [WEST, NORTH])
        async with Etcd(server.config("remote-north")) as north:
            assert await north.get(KEYS[0].encode()) == b"1"
            await set_up_users(etcd, EAST, [WEST])
            with pytest.raises(EtcdError):
                await north.get(KEYS[0].encode())


async def test_an_etcd_that_lost_its_data_gets_its_users_before_anything_else(
    server: EtcdServer,
) -> None:
    async with Etcd(server.config()) as etcd:
        users = Users(etcd, EAST, None)
        await users.ensure()
        server.stop()
        server.wipe()
        server.start()
        async with Etcd(server.config("remote-west")) as thief:  # while nobody keeps it from it
            auth = Auth(thief)
            await auth.add_user("remote-west")
            await auth.add_user("admin-west")
            await auth.grant_role("admin-west", "root")
        await users.ensure()
        assert await Auth(etcd).roles_of("admin-west") == set()
    async with Etcd(server.config("remote-west")) as thief:
        with pytest.raises(EtcdError):
            await thief.put(KEYS[1].encode(), b"mine")
