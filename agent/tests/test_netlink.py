"""Devices, rules and routes on the real kernel, each test in a network namespace of its own."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from itertools import islice
from pathlib import Path
from socket import AF_INET6

import pytest

from agent.kernel.netlink import Netlink
from agent.kernel.route_messages import KernelRoute
from agent.kernel.tunnel import Tunnel, TunnelProtocol
from agent.rows import RouteKey
from agent.tests.netns import in_namespace, sh
from clustermesh.model import IPNetwork

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

VXLAN = Tunnel()


def to(prefix: str, *, from_pods: bool = False) -> RouteKey:
    return RouteKey(ip_network(prefix), from_pods)


def routes_within(network: str, length: int, count: int) -> list[RouteKey]:
    subnets: Iterator[IPNetwork] = ip_network(network).subnets(new_prefix=length)
    return [RouteKey(prefix) for prefix in islice(subnets, count)]


def test_the_tunnel_device_carries_both_families_to_wherever_bpf_says() -> None:
    async def body(netlink: Netlink) -> None:
        await netlink.ensure_tunnel_device(1450, VXLAN)
        shown = sh(f"ip -d link show {VXLAN.device}")
        assert "NOARP,UP" in shown
        assert "mtu 1450" in shown
        assert "vxlan external" in shown
        assert "dstport 8472 nolearning" in shown
        assert "udp6zerocsumtx udp6zerocsumrx" in shown
        assert Path(f"/proc/sys/net/ipv4/conf/{VXLAN.device}/rp_filter").read_text() == "2\n"
        assert "scope host" in sh(f"ip -4 address show {VXLAN.device}"), "or it is strict"
        assert "generic-receive-offload: off" in sh(f"ethtool -k {VXLAN.device}")

    in_namespace(body)


def test_tasks_that_read_at_once_all_get_everything() -> None:
    """The kernel refuses a second dump of a socket while one is under way."""

    async def body(netlink: Netlink) -> None:
        for number in range(100):  # more than fits into one message
            sh(f"ip link add a{number} type veth peer name b{number}")
        ip = netlink.ip
        found = await asyncio.gather(
            *(ip.dump(ip.get_links) for _ in range(5)),
            *(ip.dump(ip.get_neighbours, family=AF_INET6) for _ in range(5)),
            *(netlink.addresses() for _ in range(5)),
        )
        assert [len(links) for links in found[:5]] == [203] * 5
        assert all(len(addresses) == 2 for addresses in found[10:])

    in_namespace(body)


@pytest.mark.vm
@pytest.mark.parametrize("protocol", list(TunnelProtocol))
def test_the_device_of_either_protocol_is_made_once(protocol: TunnelProtocol) -> None:
    async def body(netlink: Netlink) -> None:
        tunnel = Tunnel(protocol)
        try:
            index = await netlink.ensure_tunnel_device(1450, tunnel)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                pytest.skip(str(error))
            raise
        assert await netlink.ensure_tunnel_device(1400, tunnel) == index
        other = Tunnel(protocol, 4790)
        assert await netlink.ensure_tunnel_device(1400, other) != index
        assert "dstport 4790" in sh(f"ip -d link show {tunnel.device}")
        await netlink.remove_tunnel_devices()
        assert tunnel.device not in sh("ip link")

    in_namespace(body)


def test_a_device_that_is_right_is_adopted_and_one_that_is_nearly_right_is_put_right() -> None:
    async def body(netlink: Netlink) -> None:
        index = await netlink.ensure_tunnel_device(1450, VXLAN)
        assert await netlink.ensure_tunnel_device(1450, VXLAN) == index
        sh(f"ip link set {VXLAN.device} mtu 1300 arp on down")
        assert await netlink.ensure_tunnel_device(1450, VXLAN) == index
        shown = sh(f"ip link show {VXLAN.device}")
        assert "NOARP,UP" in shown
        assert "mtu 1450" in shown

    in_namespace(body)


def test_a_device_with_another_port_or_mode_is_made_anew() -> None:
    async def body(netlink: Netlink) -> None:
        first = await netlink.ensure_tunnel_device(1450, VXLAN)
        second = await netlink.ensure_tunnel_device(1450, Tunnel(udp_port=8473))
        assert second != first
        sh(f"ip link del {VXLAN.device}")
        sh(f"ip link add {VXLAN.device} type vxlan id 1 dstport 8472")
        await netlink.ensure_tunnel_device(1450, VXLAN)
        assert "vxlan external" in sh(f"ip -d link show {VXLAN.device}")

    in_namespace(body)


def test_a_strangers_device_of_our_name_is_left_alone() -> None:
    async def body(netlink: Netlink) -> None:
        sh(f"ip link add {VXLAN.device} type bridge")
        with pytest.raises(FileExistsError, match="is no vxlan device"):
            await netlink.ensure_tunnel_device(1450, VXLAN)
        await netlink.remove_everything()
        assert "bridge" in sh(f"ip -d link show {VXLAN.device}")

    in_namespace(body)


def test_a_port_that_another_tunnel_has_is_named() -> None:
    async def body(netlink: Netlink) -> None:
        sh("ip link add flannel.1 type vxlan id 1 dstport 8472")
        sh("ip link set flannel.1 up")
        with pytest.raises(OSError, match="cm_vxlan on UDP port 8472: Address already in use"):
            await netlink.ensure_tunnel_device(1450, VXLAN)

    in_namespace(body)


def test_the_rules_are_there_once_for_each_family_and_an_old_one_of_ours_goes() -> None:
    def ours(family: str) -> set[str]:
        return {line for line in sh(f"ip {family} rule").splitlines() if "195" in line}

    async def body(netlink: Netlink) -> None:
        sh("ip rule add priority 50 table 7 protocol 195")
        sh("ip rule add from 10.9.0.0/24 priority 195 table 1996 protocol 195")
        both = ip_network("10.1.1.0/24"), ip_network("fd00:1::/64")
        everybody = "195:\tfrom all lookup 1995 proto 195"
        for _ in range(2):
            await netlink.ensure_rules(both)
        for family, cidr in zip(("-4", "-6"), both, strict=True):
            assert ours(family) == {everybody, f"195:\tfrom {cidr} lookup 1996 proto 195"}
        await netlink.ensure_rules()
        assert ours("-4") == ours("-6") == {everybody}

    in_namespace(body)


def test_the_way_to_a_node_is_another_one_for_its_pods() -> None:
    async def body(netlink: Netlink) -> None:
        await netlink.ensure_tunnel_device(1450, VXLAN)
        await netlink.ensure_rules((ip_network("10.1.1.0/24"), ip_network("fd00:1::/64")))
        for device in ("10.1.1.1/32", "fd00:1::1/128"):
            sh(f"ip address add {device} dev lo")
        for node, own, pod in (
            ("172.30.2.1", "172.30.1.1", "10.1.1.1"),
            ("fd00:30::2", "fd00:30::1", "fd00:1::1"),
        ):
            route = {to(node, from_pods=True): KernelRoute(VXLAN.device, mtu=1450)}
            assert await netlink.routes.apply(route, []) == {}
            target = ip_address(node)
            assert await netlink.route_to(ip_address(own), target) == ("eth0", False)
            assert await netlink.route_to(ip_address(pod), target) == (VXLAN.device, True)

    in_namespace(body)


def test_forwarding_goes_on_and_router_advertisements_are_still_heard() -> None:
    async def body(netlink: Netlink) -> None:
        await netlink.ensure_forwarding("eth0")
        settings = ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/eth0/accept_ra")
        values = [Path("/proc/sys/net", name).read_text().strip() for name in settings]
        assert values == ["1", "1", "2"]

    in_namespace(body)


@pytest.mark.parametrize(("within", "length"), [("10.0.0.0/8", 26), ("fd00::/32", 64)])
def test_50_000_routes_are_added_read_and_deleted(within: str, length: int) -> None:
    async def body(netlink: Netlink) -> None:
        device = KernelRoute(VXLAN.device, mtu=1450)
        await netlink.ensure_tunnel_device(1450, VXLAN)
        wanted = dict.fromkeys(routes_within(within, length, 50_000), device)
        assert await netlink.routes.apply(wanted, []) == {}
        assert await netlink.routes.dump() == wanted
        assert await netlink.routes.apply({}, wanted) == {}
        assert await netlink.routes.dump() == {}

    in_namespace(body)


def test_every_kind_of_route_is_read_back_as_it_was_written() -> None:
    async def body(netlink: Netlink) -> None:
        await netlink.ensure_tunnel_device(1450, VXLAN)
        v4, v6 = ip_address("172.30.1.9"), ip_address("fd00:30::9")
        own4, own6 = ip_address("172.30.1.1"), ip_address("fd00:30::1")
        wanted = {
            to("10.9.0.0/24"): KernelRoute("eth0", v4, own4),
            to("10.9.1.0/24"): KernelRoute("eth0", v6),
            to("10.9.2.0/24"): KernelRoute(VXLAN.device, None, own4, 1450),
            to("fd09::/64"): KernelRoute("eth0", v6, own6),
            to("fd09:1::/64"): KernelRoute(VXLAN.device, None, None, 1430),
            to("10.9.0.0/24", from_pods=True): KernelRoute(VXLAN.device, mtu=1400),
            to("fd09::1/128", from_pods=True): KernelRoute(VXLAN.device, mtu=1400),
        }
        assert await netlink.routes.apply(wanted, []) == {}
        assert await netlink.routes.dump() == wanted
        swapped = dict(zip(wanted, (wanted[p] for p in reversed(wanted)), strict=True))
        swapped = {p: r for p, r in swapped.items() if r.source is None}
        assert await netlink.routes.apply(swapped, []) == {}
        assert await netlink.routes.dump() == {**wanted, **swapped}
        for key in tuple(wanted):
            assert await netlink.routes.apply({}, [key]) == {}
            del wanted[key]
            swapped.pop(key, None)
            assert await netlink.routes.dump() == {**wanted, **swapped}

    in_namespace(body)


def test_each_route_that_fails_says_why_and_the_others_are_there() -> None:
    async def body(netlink: Netlink) -> None:
        good = {p: KernelRoute("eth0") for p in routes_within("10.8.0.0/16", 24, 150)}
        bad = {
            to("10.9.0.0/24"): KernelRoute("eth0", ip_address("192.0.2.1")),
            to("10.9.1.0/24"): KernelRoute("away"),
            to("fd09::/64"): KernelRoute("eth0", ip_address("2001:db8::1")),
            to("fd0a::/64"): KernelRoute("eth0", ip_address("172.30.1.9")),
        }
        absent = [to("10.7.0.0/24"), to("fd07::/64")]
        failed = await netlink.routes.apply({**good, **bad}, absent)
        assert {str(prefix): str(error) for prefix, error in failed.items()} == {
            "10.9.0.0/24": "[Errno 101] node 192.0.2.1 is not on the segment of eth0, so"
            " 10.9.0.0/24 cannot be routed to it directly (Nexthop has invalid gateway):"
            " use tunnel routing",
            "10.9.1.0/24": "[Errno 19] there is no device away",
            "fd09::/64": "[Errno 101] node 2001:db8::1 is not on the segment of eth0, so"
            " fd09::/64 cannot be routed to it directly (No route to host): use tunnel routing",
            "fd0a::/64": "[Errno 97] node 172.30.1.9 has no IPv6 address, so fd0a::/64 cannot be"
            " routed to it directly: use tunnel routing",
        }
        assert await netlink.routes.dump() == good

    in_namespace(body)


def test_removing_everything_leaves_what_others_have() -> None:
    async def body(netlink: Netlink) -> None:
        sh("ip link add cni0 type bridge")
        sh("ip rule add priority 512 table 77")
        sh("ip -6 rule add priority 195 table 77")
        sh("ip route add 10.50.0.0/24 dev eth0")
        sh("ip route add 10.9.0.0/24 dev eth0 table 1995 proto bird")
        sh("ip route add 10.9.0.0/24 dev eth0 table 1995 proto bird metric 1995 tos 8")
        sh("ip -6 route add fd09::/64 dev eth0 table 1995 proto bird")
        sh("ip route add 10.9.0.0/24 dev eth0 table 77 proto 195")
        queries = (
            *("ip rule", "ip -6 rule", "ip -o -br link", "ip route show table 77"),
            *("ip route", "ip route show table 1995", "ip -6 route show table 1995"),
        )
        before = [sh(query) for query in queries]

        await netlink.ensure_tunnel_device(1450, VXLAN)
        await netlink.ensure_rules([ip_network("10.1.1.0/24")])
        keys = [to("10.9.0.0/24"), to("fd09::/64"), to("172.30.2.1", from_pods=True)]
        ours = dict.fromkeys(keys, KernelRoute(VXLAN.device))
        assert await netlink.routes.apply(ours, []) == {}
        assert await netlink.routes.dump() == ours
        assert [sh(query) for query in queries] != before

        for _ in range(2):
            await netlink.remove_everything()
            assert [sh(query) for query in queries] == before

    in_namespace(body)


def test_the_underlay_is_the_device_of_the_nodes_address_or_of_the_default_route() -> None:
    async def body(netlink: Netlink) -> None:
        with pytest.raises(OSError, match="no network device of this node has a default route"):
            await netlink.facts()
        with pytest.raises(OSError, match=r"no network device of this node has 192\.0\.2\.1"):
            await netlink.facts(node_ips=[ip_address("192.0.2.1")])
        sh("ip link set eth0 mtu 1400")
        sh("ip address add 10.1.1.1/32 dev wire")
        cidrs = (ip_network("10.1.1.0/24"), ip_network("fd00:10::/64"))
        facts = await netlink.facts(node_ips=[ip_address("fd00:30::1")], pod_cidrs=cidrs)
        assert (facts.underlay, facts.mtu) == ("eth0", 1400)
        node_ip = ip_address("fd00:30::1")
        assert (facts.pod_source(4), facts.pod_source(6)) == (ip_address("10.1.1.1"), None)
        assert (facts.source(4), facts.source(6)) == (ip_address("10.1.1.1"), node_ip)
        sh("ip route add default via 172.30.0.1")
        assert (await netlink.facts()).underlay == "eth0"

    in_namespace(body)
