"""What both drivers do alike, each on a real device; and the peers of a target, on whichever."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from agent.kernel.netlink import Netlink, device_index
from agent.kernel.wireguard.driver import Driver, PeerConfig
from agent.kernel.wireguard.kernel import KernelWireGuard
from agent.kernel.wireguard.userspace import Userspace
from agent.rows import Peer, PeerKey, UdpAddress
from agent.targets.peers import PeerTarget, peer_config
from clustermesh.model import ClusterName

from .netns import in_namespace, sh

pytestmark = [pytest.mark.kernel, pytest.mark.vm]

DEVICE = "cm_wg00"
PRIVATE = bytes([8, *range(30), 64])
NewDriver = Callable[[Netlink], AbstractContextManager[Driver]]


@pytest.fixture(params=["kernel", "wireguard-go"])
def new_driver(request: pytest.FixtureRequest, tmp_path: Path) -> NewDriver:
    if request.param == "wireguard-go":
        return lambda _: closing(Userspace(tmp_path / "sockets"))

    async def look(netlink: Netlink) -> None:
        driver = KernelWireGuard(netlink.ip)
        try:
            await driver.create(DEVICE)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                pytest.skip("this kernel has no WireGuard")
            raise
        finally:
            driver.close()

    in_namespace(look)
    return lambda netlink: closing(KernelWireGuard(netlink.ip))


def key(number: int) -> str:
    return base64.b64encode(number.to_bytes(4, "big") * 8).decode()


def peer(number: int, *, port: int = 51871, prefixes: int = 3) -> PeerConfig:
    """Pods of both families, and more of the former if there shall be more."""
    networks = [
        *(ip_network(f"10.{number // 256}.{number % 256}.{n}/32") for n in range(prefixes - 1)),
        ip_network(f"fd00:{number:x}::/64"),
    ]
    return PeerConfig(UdpAddress(ip_address("192.0.2.1"), port), tuple(networks), 25)


def test_a_device_is_as_it_was_made(new_driver: NewDriver) -> None:
    async def body(netlink: Netlink) -> None:
        with new_driver(netlink) as driver:
            with pytest.raises(OSError, match=DEVICE) as missing:
                await driver.read(DEVICE)
            assert missing.value.errno == errno.ENODEV
            await driver.create(DEVICE)
            await driver.create(DEVICE)  # idempotent
            await driver.configure(DEVICE, PRIVATE, 51871)
            found = await driver.read(DEVICE)
            assert (found.private_key, found.port, found.peers) == (PRIVATE, 51871, {})
            assert PRIVATE.hex() not in repr(found)

            two = PeerConfig(UdpAddress(ip_address("2001:db8::2"), 51873), peer(2).allowed_ips, 0)
            assert await driver.put_peers(DEVICE, {key(1): peer(1), key(2): two}, ()) == {}
            found = await driver.read(DEVICE)
            assert {k: p.config for k, p in found.peers.items()} == {key(1): peer(1), key(2): two}
            assert {(p.handshake_at, p.received) for p in found.peers.values()} == {(0.0, 0)}

            moved = PeerConfig(None, (*peer(1).allowed_ips, *peer(2).allowed_ips[:1]), 5)
            assert await driver.put_peers(DEVICE, {key(1): moved}, [key(9)]) == {}
            found = await driver.read(DEVICE)
            assert found.peers[key(1)].config.endpoint == peer(1).endpoint, "it was not named"
            assert found.peers[key(1)].config.keepalive == 5
            assert found.peers[key(2)].config.allowed_ips == two.allowed_ips[1:], (
                "a prefix has one owner"
            )

            assert await driver.put_peers(DEVICE, {}, [key(1), key(2)]) == {}
            assert (await driver.read(DEVICE)).peers == {}
            await netlink.remove_device(DEVICE)

    in_namespace(body)


def test_a_thousand_peers_and_one_with_a_thousand_prefixes(new_driver: NewDriver) -> None:
    async def body(netlink: Netlink) -> None:
        with new_driver(netlink) as driver:
            await driver.create(DEVICE)
            await driver.configure(DEVICE, PRIVATE, 51871)
            wanted = {key(n): peer(n) for n in range(1, 1001)}
            begun = time.monotonic()
            assert await driver.put_peers(DEVICE, wanted, ()) == {}
            took = time.monotonic() - begun
            assert took < 10.0, "seconds, also where the machine is emulated"
            found = await driver.read(DEVICE)
            assert {k: p.config for k, p in found.peers.items()} == wanted
            many = tuple(ip_network((0x0A000000 + n, 32)) for n in range(1100))
            large = PeerConfig(peer(1).endpoint, many, 0)
            assert await driver.put_peers(DEVICE, {key(1): large}, ()) == {}
            assert (await driver.read(DEVICE)).peers[key(1)].config == large
            await netlink.remove_device(DEVICE)

    in_namespace(body)


def test_wireguard_go_lives_on_and_goes_with_its_device(tmp_path: Path) -> None:
    async def body(netlink: Netlink) -> None:
        driver = Userspace(tmp_path / "sockets")
        await driver.create(DEVICE)
        await Userspace(tmp_path / "sockets").configure(DEVICE, PRIVATE, 51871)
        assert (await driver.read(DEVICE)).port == 51871
        assert await netlink.has_kind(DEVICE, "tun")
        await netlink.remove_device(DEVICE)
        async with asyncio.timeout(10):
            while os.listdir(tmp_path / "sockets"):  # noqa: ASYNC110, PTH208
                await asyncio.sleep(0.01)
        with pytest.raises(OSError, match="no wireguard-go runs"):
            await driver.read(DEVICE)
        await driver.create(DEVICE)
        await netlink.remove_device(DEVICE)

    in_namespace(body)


WEST = ClusterName("west")
ROW = Peer(WEST, "node1", UdpAddress(ip_address("172.30.2.1"), 51871), peer(2).allowed_ips, 0, 0)
AT = PeerKey(DEVICE, key(2))


def test_a_target_makes_devices_and_writes_only_what_differs(new_driver: NewDriver) -> None:
    async def body(netlink: Netlink) -> None:
        rows = {AT: ROW}
        with new_driver(netlink) as driver:
            target = PeerTarget(
                driver, netlink, port=51871, private_key={0: PRIVATE}.__getitem__, wanted=rows.get
            )
            target.mtu = 1440
            assert await target.actual() == {}
            wanted = peer_config(AT, ROW)
            assert await target.apply({AT: wanted}, ()) == {}
            assert await target.actual() == {AT: wanted}
            assert "mtu 1440" in sh(f"ip link show {DEVICE}")
            assert Path(f"/proc/sys/net/ipv4/conf/{DEVICE}/rp_filter").read_text().strip() == "2"

            # Another agent, which has configured nothing yet: a strange endpoint without a
            # handshake is none that was learned.
            again = PeerTarget(
                driver, netlink, port=51871, private_key={0: PRIVATE}.__getitem__, wanted=rows.get
            )
            elsewhere = UdpAddress(ip_address("203.0.113.7"), 7777)
            roamed = PeerConfig(elsewhere, ROW.allowed_ips, 0)
            await driver.put_peers(DEVICE, {key(2): roamed}, ())
            assert await again.actual() == {AT: roamed}
            assert await again.apply({AT: wanted}, ()) == {}
            assert (await driver.read(DEVICE)).peers[key(2)].config == wanted

            # Only what it is told anew is written: the endpoint stays as somebody else made it.
            await driver.put_peers(DEVICE, {key(2): roamed}, ())
            more = PeerConfig(wanted.endpoint, ROW.allowed_ips, 25)
            assert await again.apply({AT: more}, ()) == {}
            assert (await driver.read(DEVICE)).peers[key(2)].config.endpoint == elsewhere

            await again.apply({}, [AT])
            await again.tidy(())
            assert device_index(DEVICE) is None

    in_namespace(body)


def test_a_device_that_was_taken_away_comes_back_with_its_peers(new_driver: NewDriver) -> None:
    async def body(netlink: Netlink) -> None:
        with new_driver(netlink) as driver:
            target = PeerTarget(
                driver,
                netlink,
                port=51871,
                private_key={0: PRIVATE}.__getitem__,
                wanted={AT: ROW}.get,
            )
            wanted = peer_config(AT, ROW)
            await target.apply({AT: wanted}, ())
            await netlink.remove_device(DEVICE)
            assert await target.actual() == {}
            assert await target.apply({AT: wanted}, ()) == {}
            assert await target.actual() == {AT: wanted}
            await target.tidy(())

    in_namespace(body)
