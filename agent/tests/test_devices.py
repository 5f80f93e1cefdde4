"""Which devices there are, and which lead off the node, as the kernel tells it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping

import pytest

from agent.kernel.devices import device_changes
from agent.kernel.netlink import Netlink
from agent.rows import Device
from agent.tests.netns import in_namespace, sh

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

WITHIN = 20.0  # seconds

KERNELS_OWN = {"tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip6gre0", "ip_vti0"}
"""What some kernels put into every network namespace."""


def show(devices: Mapping[int, Device]) -> str:
    made = [device for device in devices.values() if device.name not in KERNELS_OWN]
    return " ".join(sorted(device.name + "*" * device.is_uplink for device in made))


async def comes(changes: AsyncIterator[Mapping[int, Device]], wanted: str) -> None:
    """Wait until there are these devices; `*` is an uplink."""
    seen = ""
    try:
        async with asyncio.timeout(WITHIN):
            while seen != wanted:
                seen = show(await anext(changes))
    except TimeoutError:
        pytest.fail(f"{seen}, and not {wanted}")


def test_devices_are_known_as_they_come_and_go() -> None:
    async def body(_: Netlink) -> None:
        sh("ip link add outer type bridge")
        async with contextlib.aclosing(device_changes()) as changes:
            await comes(changes, "outer")  # eth0 and its peer are one cable, both ends of it here
            sh("ip link add cni0 type bridge")
            sh("ip address add 10.1.1.1/24 dev cni0")
            await comes(changes, "cni0 outer")
            sh("ip link set cni0 name cni1")
            await comes(changes, "cni1 outer")
            sh("ip link add nic type vxlan id 7 dstport 4791")
            await comes(changes, "cni1 nic outer")
            sh("ip link set nic master cni1")
            sh("ip link set nic nomaster")
            sh("ip link del outer")
            await comes(changes, "cni1 nic")

    in_namespace(body)


def test_a_default_route_makes_an_uplink_of_any_device() -> None:
    async def body(_: Netlink) -> None:
        for name in ("br1", "br2", "br3"):
            sh(f"ip link add name {name} type bridge")
            sh(f"ip link set {name} up")
        sh("ip -6 route add default dev br1")
        async with contextlib.aclosing(device_changes()) as changes:
            await comes(changes, "br1* br2 br3")
            sh("ip route add default nexthop dev br2 nexthop dev br1")
            await comes(changes, "br1* br2* br3")
            sh("ip route del default")
            sh("ip route add 10.9.0.0/16 dev br3")
            sh("ip link add last type bridge")
            await comes(changes, "br1* br2* br3 last")

    in_namespace(body)


def test_a_wire_is_an_uplink_as_soon_as_it_has_an_address_or_a_default_route_of_any_table() -> None:
    """But a veth is not: a proxy of a CNI has a table with a default route to one."""

    async def body(_: Netlink) -> None:
        sh("ip link add cilium_host type bridge")
        for number in (1, 2, 3):
            try:
                sh(f"ip link add link eth0 name wire.{number} type vlan id {number}")
            except AssertionError as error:
                pytest.skip(f"this kernel has no VLANs: {error}")
        for device in ("cilium_host", "wire.1", "wire.2", "wire.3"):
            sh(f"ip link set {device} addrgenmode none up")
        sh("ip route add default dev wire.1 table 77")
        sh("ip route add default dev cilium_host table 2005")
        async with contextlib.aclosing(device_changes()) as changes:
            await comes(changes, "cilium_host wire.1* wire.2 wire.3")
            sh("ip address add 198.51.100.1/24 dev wire.2")
            await comes(changes, "cilium_host wire.1* wire.2* wire.3")
            sh("ip -6 route add default dev wire.3 table 78")
            await comes(changes, "cilium_host wire.1* wire.2* wire.3*")

    in_namespace(body)
