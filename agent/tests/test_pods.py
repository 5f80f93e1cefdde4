"""Which pods are found on which devices, on the real kernel."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from agent.kernel.netlink import Netlink
from agent.kernel.pods import pod_changes, read_pods
from agent.rows import Pod
from agent.tests.netns import in_namespace, sh
from clustermesh.model import IPAddress
from clustermesh.sandbox.namespace import run_in_new, run_inside, unmount

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

CIDRS = (ip_network("10.1.1.0/24"), ip_network("fd00:10:1:1::/64"))
MAC = "02:00:00:00:00:{:02}"


def show(found: dict[IPAddress, Pod]) -> dict[str, str]:
    """Addresses with their devices, as a person would print them."""
    names = {}
    for line in sh("ip -o link").splitlines():
        index, name, *_ = line.split(": ")
        names[int(index)] = name.partition("@")[0]
    return {
        str(address): f"{pod.mac} on {names[pod.port]}"
        + (f" of {names[pod.device]}" if pod.device != pod.port else "")
        for address, pod in found.items()
    }


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Path]:
    """A network namespace for the other ends of links."""
    file = tmp_path / "netns"
    run_in_new(lambda: None, keep=file)
    yield file
    unmount(file)


def veth(name: str, pod: Path) -> None:
    sh(f"ip link add {name} type veth peer name {name}-pod netns {pod}")
    run_inside(pod, lambda: sh(f"ip link set {name}-pod up"))
    sh(f"ip link set {name} up")


def test_pods_are_found_on_veths_of_their_own_and_behind_bridges(pod: Path) -> None:
    async def body(netlink: Netlink) -> None:
        veth("v1", pod)
        for address in ("10.1.1.5", "fd00:10:1:1::5"):
            sh(f"ip route add {address} dev v1")
            sh(f"ip neighbour add {address} lladdr {MAC.format(5)} dev v1")
        veth("v2", pod)
        sh("ip link add cni0 type bridge")
        sh("ip link set cni0 up")
        sh("ip link set v2 master cni0")
        sh("ip route add 10.1.1.6 dev cni0")
        sh(f"bridge fdb add {MAC.format(6)} dev v2 master static")
        sh(f"ip neighbour add 10.1.1.6 lladdr {MAC.format(6)} dev cni0")
        assert show(await read_pods(netlink.ip, CIDRS, {})) == {
            "10.1.1.5": "02:00:00:00:00:05 on v1",
            "fd00:10:1:1::5": "02:00:00:00:00:05 on v1",
            "10.1.1.6": "02:00:00:00:00:06 on v2 of cni0",
        }

    in_namespace(body)


def test_whatever_is_no_pod_of_ours_on_a_veth_is_not_found(pod: Path) -> None:
    async def body(netlink: Netlink) -> None:
        veth("v1", pod)
        veth("v2", pod)
        sh("ip link add cni0 type bridge")
        sh("ip link set cni0 up")
        # Claimed on one device, routed to another.
        sh("ip route add 10.1.1.5 dev v2")
        sh(f"ip neighbour add 10.1.1.5 lladdr {MAC.format(5)} dev v1")
        # Of somebody else, behind a router, on a port that is not known, not resolved.
        sh("ip route add 10.9.9.9 dev v1")
        sh(f"ip neighbour add 10.9.9.9 lladdr {MAC.format(9)} dev v1")
        sh("ip route add 10.1.1.7 via 172.30.1.9")
        sh(f"ip neighbour add 10.1.1.7 lladdr {MAC.format(7)} dev v1")
        sh("ip route add 10.1.1.8 dev cni0")
        sh(f"ip neighbour add 10.1.1.8 lladdr {MAC.format(8)} dev cni0")
        sh("ip route add 10.1.1.10 dev v1")
        # Behind a veth that does not lead off this node, and behind something that is no veth.
        sh("ip link add v3 type veth peer name v3-here")
        sh("ip link add v4 link v3-here type macvlan mode bridge")
        for number, device in ((11, "v3"), (12, "v3-here"), (13, "v4")):
            sh(f"ip link set {device} up")
            sh(f"ip route add 10.1.1.{number} dev {device}")
            sh(f"ip neighbour add 10.1.1.{number} lladdr {MAC.format(number)} dev {device}")
        assert await read_pods(netlink.ip, CIDRS, {}) == {}

    in_namespace(body)


def test_a_pod_stays_while_its_device_and_route_do_though_the_kernel_forgets_its_neighbour(
    pod: Path,
) -> None:
    async def body(netlink: Netlink) -> None:
        veth("v1", pod)
        sh("ip route add 10.1.1.5 dev v1")
        sh(f"ip neighbour add 10.1.1.5 lladdr {MAC.format(5)} dev v1")
        found = await read_pods(netlink.ip, CIDRS, {})
        sh("ip neighbour del 10.1.1.5 dev v1")
        assert await read_pods(netlink.ip, CIDRS, found) == found
        assert ip_address("10.1.1.5") in found
        sh("ip route del 10.1.1.5")
        assert await read_pods(netlink.ip, CIDRS, found) == {}
        sh("ip route add 10.1.1.5 dev v1")
        sh("ip link del v1")
        assert await read_pods(netlink.ip, CIDRS, found) == {}

    in_namespace(body)


def test_a_pod_that_comes_is_heard_of_once(pod: Path) -> None:
    async def body(netlink: Netlink) -> None:
        veth("v1", pod)
        changes: AsyncIterator[None] = pod_changes()
        await anext(changes)
        sh(f"ip neighbour add 10.1.1.5 lladdr {MAC.format(5)} dev v1")
        async with asyncio.timeout(20):
            await anext(changes)
        following = asyncio.ensure_future(anext(changes))
        while (await asyncio.wait([following], timeout=2))[0]:  # the links are settling
            following = asyncio.ensure_future(anext(changes))
        sh(f"ip neighbour replace 10.1.1.5 lladdr {MAC.format(5)} dev v1 nud stale")
        await asyncio.wait([following], timeout=1)
        assert not following.done()
        sh(f"ip neighbour replace 10.1.1.5 lladdr {MAC.format(6)} dev v1")
        async with asyncio.timeout(20):
            await following

    in_namespace(body)
