"""What both drivers do alike, each on a real device; and the peers of a target, on whichever."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, closing, suppress
from ipaddress import ip_address, ip_network
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from agent.kernel.netlink import Netlink, device_index
from agent.kernel.wireguard.driver import Driver, PeerChange, PeerConfig
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


def only(config: PeerConfig) -> PeerChange:
    return PeerChange(config.endpoint, config.allowed_ips, config.keepalive, only=True)


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
            assert (
                await driver.put_peers(DEVICE, {key(1): only(peer(1)), key(2): only(two)}, ()) == {}
            )
            found = await driver.read(DEVICE)
            assert {k: p.config for k, p in found.peers.items()} == {key(1): peer(1), key(2): two}
            assert {(p.handshake_at, p.received) for p in found.peers.values()} == {(0.0, 0)}

            moved = PeerChange(None, peer(2).allowed_ips[:1], 5)
            assert await driver.put_peers(DEVICE, {key(1): moved}, [key(9)]) == {}
            found = await driver.read(DEVICE)
            assert found.peers[key(1)].config.endpoint == peer(1).endpoint, "it was not named"
            assert found.peers[key(1)].config.keepalive == 5
            assert set(found.peers[key(1)].config.allowed_ips) == {
                *peer(1).allowed_ips,
                *peer(2).allowed_ips[:1],
            }
            assert found.peers[key(2)].config.allowed_ips == two.allowed_ips[1:], (
                "a prefix has one owner"
            )

            fewer = PeerChange(None, peer(1).allowed_ips[:1], 5, only=True)
            assert await driver.put_peers(DEVICE, {key(1): fewer}, ()) == {}
            found = await driver.read(DEVICE)
            assert found.peers[key(1)].config.allowed_ips == peer(1).allowed_ips[:1]

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
            changes = {k: only(config) for k, config in wanted.items()}
            begun = time.monotonic()
            assert await driver.put_peers(DEVICE, changes, ()) == {}
            took = time.monotonic() - begun
            assert took < 60.0, "seconds, also where the machine is emulated and busy"
            found = await driver.read(DEVICE)
            assert {k: p.config for k, p in found.peers.items()} == wanted
            many = tuple(ip_network((0x0A000000 + n, 32)) for n in range(1100))
            large = PeerConfig(peer(1).endpoint, many, 0)
            assert await driver.put_peers(DEVICE, {key(1): only(large)}, ()) == {}
            assert (await driver.read(DEVICE)).peers[key(1)].config == large
            await netlink.remove_device(DEVICE)

    in_namespace(body)


def test_a_peer_that_is_refused_spoils_no_other(new_driver: NewDriver) -> None:
    """One of a batch, and the last of another: what is wrong with it is said of it alone."""

    async def body(netlink: Netlink) -> None:
        with new_driver(netlink) as driver:
            await driver.create(DEVICE)
            await driver.configure(DEVICE, PRIVATE, 51871)
            wanted = {key(n): peer(n) for n in range(1, 601)}
            short = [base64.b64encode(bytes([n] * 31)).decode() for n in (1, 2)]
            changes = {k: only(config) for k, config in wanted.items()}
            bad = dict.fromkeys(short, only(peer(700)))
            ordered = {
                **dict(islice(changes.items(), 40)),
                short[0]: bad[short[0]],
                **changes,
                **bad,
            }
            failed = await driver.put_peers(DEVICE, ordered, [])
            assert failed.keys() == set(short)
            assert {error.errno for error in failed.values()} <= {errno.EINVAL, errno.ERANGE}
            found = await driver.read(DEVICE)
            assert {k: p.config for k, p in found.peers.items()} == wanted
            assert (await driver.put_peers(DEVICE, {}, [*short, *wanted])).keys() == set(short)
            assert (await driver.read(DEVICE)).peers == {}
            await netlink.remove_device(DEVICE)
            with pytest.raises(OSError, match=DEVICE) as missing:
                await driver.put_peers(DEVICE, changes, ())
            assert missing.value.errno == errno.ENODEV, "and that is not asked for each peer"

    in_namespace(body)


def test_a_wireguard_go_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    async def body(netlink: Netlink) -> None:
        sockets = tmp_path / "sockets"
        driver = Userspace(sockets, answers_within=0.2)
        await driver.create(DEVICE)
        process = wireguard_go()
        os.kill(process, signal.SIGSTOP)
        try:
            for call in (
                driver.read(DEVICE),
                driver.configure(DEVICE, PRIVATE, 51871),
                driver.put_peers(DEVICE, {key(n): only(peer(n)) for n in range(1000)}, ()),
            ):
                async with asyncio.timeout(30):
                    with pytest.raises(
                        TimeoutError, match=r"cm_wg00 does not answer within 0\.2 s"
                    ):
                        await call
            await driver.create(DEVICE)  # it is there
        finally:
            os.kill(process, signal.SIGCONT)
        assert (await Userspace(sockets).read(DEVICE)).port >= 0
        await netlink.remove_device(DEVICE)

    in_namespace(body)


def wireguard_go() -> int:
    """The process that serves the network namespace of this thread."""
    here, found = os.readlink("/proc/thread-self/ns/net"), []  # noqa: PTH115
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if (process / "comm").read_text() == "wireguard-go\n":
                found += [process] if os.readlink(process / "ns/net") == here else []  # noqa: PTH115
    (one,) = found
    return int(one.name)


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
            await driver.put_peers(DEVICE, {key(2): only(roamed)}, ())
            assert await again.actual() == {AT: roamed}
            assert await again.apply({AT: wanted}, ()) == {}
            assert (await driver.read(DEVICE)).peers[key(2)].config == wanted

            # Only what it is told anew is written: the endpoint stays as somebody else made it.
            await driver.put_peers(DEVICE, {key(2): only(roamed)}, ())
            more = PeerConfig(wanted.endpoint, ROW.allowed_ips, 25)
            assert await again.apply({AT: more}, ()) == {}
            assert (await driver.read(DEVICE)).peers[key(2)].config.endpoint == elsewhere

            await again.apply({}, [AT])
            await again.tidy(())
            assert device_index(DEVICE) is None

    in_namespace(body)


def test_a_change_takes_no_prefix_away_for_a_moment(new_driver: NewDriver) -> None:
    """Not from others, nor from the peer that it is about, unless it has one too many."""

    async def body(netlink: Netlink) -> None:
        rows = {PeerKey(DEVICE, key(n)): row(n) for n in (1, 2)}
        with new_driver(netlink) as driver:
            written = Written(driver)
            target = PeerTarget(
                written, netlink, port=51871, private_key={0: PRIVATE}.__getitem__, wanted=rows.get
            )
            first, second = rows

            async def change(**fields: object) -> str:
                rows[first] = msgspec.structs.replace(rows[first], **fields)
                wanted = {at: peer_config(at, peer) for at, peer in rows.items()}
                assert await target.apply({first: wanted[first]}, ()) == {}
                assert await target.actual() == wanted
                (put,) = written.puts[-1].values()
                return f"{len(put.allowed_ips)} prefixes{', and no others' if put.only else ''}"

            assert await target.apply({second: peer_config(second, rows[second])}, ()) == {}
            assert await change() == "3 prefixes"
            assert await change(keepalive=5) == "0 prefixes"
            assert await change(allowed_ips=(*peer(1).allowed_ips, ip_network("fd01::/64"))) == (
                "1 prefixes"
            )
            assert await change(allowed_ips=peer(1).allowed_ips) == "3 prefixes, and no others"
            await target.tidy(())

    in_namespace(body)


class Written:
    """A driver, and what it was given."""

    def __init__(self, driver: Driver) -> None:
        self.name, self.close = driver.name, driver.close
        self.create, self.read, self.configure = driver.create, driver.read, driver.configure
        self.puts: list[Mapping[str, PeerChange]] = []
        self._driver = driver

    async def put_peers(
        self, device: str, puts: Mapping[str, PeerChange], deletes: Collection[str]
    ) -> Mapping[str, OSError]:
        self.puts.append(puts)
        return await self._driver.put_peers(device, puts, deletes)


def row(number: int) -> Peer:
    """A peer as a rule makes it."""
    at = UdpAddress(ip_address(f"172.30.2.{number}"), 51871)
    return Peer(WEST, f"node{number}", at, peer(number).allowed_ips, 0, 0)


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
