"""
Seconds to program a thousand WireGuard peers.

    python -m e2e.bench peers         here; where the kernel has no WireGuard, also in a guest
    python -m e2e.bench.peers FILE    what the guest runs: the times into FILE
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

import msgspec

from agent.kernel.netlink import Netlink
from agent.kernel.wireguard.choice import choose
from agent.rows import Peer, PeerKey, UdpAddress
from agent.targets.peers import PeerTarget, peer_config
from clustermesh.model import ClusterName
from clustermesh.sandbox.cache import UnavailableError
from clustermesh.sandbox.namespace import run_in_new

from . import bare
from .guests import run_in_guest
from .measurement import Goal, Measurement, Say, Table

_COUNT: Final = 1000
_SECONDS: Final = 2.0
_RUNS: Final = 3
_PRIVATE: Final = bytes([8, *range(30), 64])  # nobody's
_DEVICE: Final = "cm_wg00"

_TEXT: Final = f"""\
As an agent does it that starts on a node without any: a device, and {_COUNT} nodes of other
clusters as its peers, with two pod CIDRs and two addresses each; all of them again with another
keepalive, as when a key begins to change; and reading them back. Each is the fastest of {_RUNS}.
Where the machine's kernel has no WireGuard, the kernel's is measured in User Mode Linux, a guest
that starts threads many times as slowly; there the kernel has one for each peer.
"""


class Times(msgspec.Struct):
    """Seconds, each of the fastest run."""

    kernel: str  # its release
    driver: str
    added: float
    altered: float
    read: float

    @property
    def where(self) -> str:
        """Names the row of a table."""
        return f"{self.driver}, Linux {self.kernel}"


_TIMES: Final = msgspec.json.Decoder(Times)


def measure(say: Say, *, quick: bool) -> Measurement:
    """Here, and in a guest that has a kernel with WireGuard if this one has none."""
    del quick  # it is
    found, left_out = [_measure()], ""
    if not bare.has_wireguard():
        try:
            found.insert(0, _TIMES.decode(run_in_guest("peers")))
        except UnavailableError as error:
            left_out = f"\nThe kernel's WireGuard was not measured: {error}\n"
    for times in found:
        say(f"{times.where}: {_COUNT} peers in {times.added:.2f} s")
    return Measurement(
        title=f"{_COUNT:,} encrypted peers",
        text=f"{_TEXT}{left_out}",
        goals=[
            Goal(f"{_COUNT:,} peers, {times.driver}", times.added, _SECONDS, "s") for times in found
        ],
        tables=[
            Table(
                ["driver", "added", "altered", "read"],
                [
                    [
                        times.where,
                        *(f"{s:.2f} s" for s in (times.added, times.altered, times.read)),
                    ]
                    for times in found
                ],
            )
        ],
        plots=[],
    )


def _measure() -> Times:
    runs = [run_in_new(lambda: asyncio.run(_run())) for _ in range(_RUNS)]
    added, altered, read = (min(times) for times in zip(*(times for _, times in runs), strict=True))
    return Times(platform.release(), runs[0][0], added, altered, read)


async def _run() -> tuple[str, tuple[float, float, float]]:
    """The driver, and the seconds that each took; in a network namespace of its own."""
    rows = {PeerKey(_DEVICE, _key(n)): _peer(n) for n in range(1, _COUNT + 1)}
    with tempfile.TemporaryDirectory() as sockets:
        async with Netlink.open() as netlink:
            driver = await choose(netlink, Path(sockets), _DEVICE)
            with contextlib.closing(driver):
                target = PeerTarget(
                    driver,
                    netlink,
                    port=51871,
                    private_key=lambda _: _PRIVATE,
                    wanted=rows.get,
                )
                added = await _apply(target, rows)
                for key, row in rows.items():
                    rows[key] = msgspec.structs.replace(row, keepalive=5)
                altered = await _apply(target, rows)
                begun = time.monotonic()
                assert len(await target.actual()) == _COUNT
                read = time.monotonic() - begun
                if driver.name != "kernel":  # whose devices go with the namespace
                    await target.tidy(())
    return driver.name, (added, altered, read)


async def _apply(target: PeerTarget, rows: Mapping[PeerKey, Peer]) -> float:
    wanted = {key: peer_config(key, row) for key, row in rows.items()}
    begun = time.monotonic()
    failed = await target.apply(wanted, ())
    assert not failed, next(iter(failed.values()))
    return time.monotonic() - begun


def _key(number: int) -> str:
    return base64.b64encode(number.to_bytes(4, "big") * 8).decode()


def _peer(number: int) -> Peer:
    v4, v6 = ip_address("172.16.0.0") + number, ip_address("fd01::") + number
    pods = (
        ip_network((0x0A000000 + 256 * number, 24)),
        ip_network((int(ip_address("fd00::")) + (number << 64), 64)),
    )
    allowed = (pods[0], ip_network(v4), pods[1], ip_network(v6))
    return Peer(ClusterName("west"), f"node{number}", UdpAddress(v4, 51871), allowed, 0, 0)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(msgspec.json.encode(_measure()))
