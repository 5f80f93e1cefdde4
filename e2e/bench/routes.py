"""Seconds to put 50,000 routes into the kernel, and to take them away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from functools import partial
from ipaddress import ip_network
from itertools import islice
from typing import Final

from agent.kernel.netlink import Netlink
from agent.kernel.route_messages import KernelRoute
from agent.kernel.tunnel import Tunnel
from agent.rows import RouteKey
from clustermesh.model import IPNetwork
from clustermesh.sandbox.namespace import run_in_new

from .measurement import Goal, Measurement, Say, Table

_SECONDS: Final = 2.0
_NETWORKS: Final = {"IPv4": ("10.0.0.0/8", 26), "IPv6": ("fd00::/32", 64)}

_TEXT: Final = """\
As an agent does it, through netlink into its own table of an empty network namespace, one family
after the other: routes to as many pod CIDRs, into the tunnel device.
"""


def measure(say: Say, *, quick: bool) -> Measurement:
    """Add all, and delete all."""
    count = 5_000 if quick else 50_000
    found = {name: run_in_new(partial(_run, name, count)) for name in _NETWORKS}
    for name, (added, deleted) in found.items():
        say(f"{name}: {added:.2f} s, and {deleted:.2f} s to delete them")
    return Measurement(
        title=f"{count:,} routes",
        text=_TEXT,
        goals=[
            Goal(f"{count:,} {name} routes added", added, _SECONDS, "s")
            for name, (added, _) in found.items()
        ],
        tables=[
            Table(
                ["family", "added", "deleted"],
                [[name, *(f"{seconds:.2f} s" for seconds in row)] for name, row in found.items()],
            )
        ],
        plots=[],
    )


def _run(name: str, count: int) -> tuple[float, float]:
    return asyncio.run(_measure(name, count))


async def _measure(name: str, count: int) -> tuple[float, float]:
    within, length = _NETWORKS[name]
    tunnel = Tunnel()
    async with Netlink.open() as netlink:
        await netlink.ensure_tunnel_device(1450, tunnel)
        prefixes: Iterable[IPNetwork] = islice(ip_network(within).subnets(new_prefix=length), count)
        wanted = dict.fromkeys(map(RouteKey, prefixes), KernelRoute(tunnel.device, mtu=1450))
        started = time.monotonic()
        failed = await netlink.routes.apply(wanted, [])
        added = time.monotonic() - started
        assert not failed, next(iter(failed.values()))
        started = time.monotonic()
        await netlink.routes.apply({}, wanted)
        return added, time.monotonic() - started
