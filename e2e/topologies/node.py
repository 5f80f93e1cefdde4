"""
A sandbox's node and its pods made as a topology says, and back again.

All of it happens inside their namespaces. Pods keep their addresses; their connections break.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from clustermesh.sandbox.model import ROUTER, Cluster, Node, Pod, Sandbox
from clustermesh.sandbox.namespace import run_inside

from .topology import Layout, Topology

_SYSCTL: Final = Path("/proc/sys/net")
_WORKLOAD_MAC: Final = "ee:ee:ee:ee:ee:ee"  # what Calico gives the node's end of each link
_WORKLOAD_IPV6: Final = "fe80::ecee:eeff:feee:eeee"  # made of it
_ARP_GATEWAY: Final = "169.254.1.1"

# What no node is without: iptables-legacy has the tables that were asked for once, for good.
_LEGACY: Final = """\
*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
COMMIT
"""

_LOOKS: Final = (
    "ip -o link show",
    "ip -o address show",
    "ip rule show",
    "ip -6 rule show",
    "ip route show table all",
    "ip -6 route show table all",
    "nft --stateless list ruleset",
    "ipset save",
    "iptables-legacy-save",
    "ip6tables-legacy-save",
)
_COUNTED: Final = tuple(
    f"{family}tables-{kind}-save -c" for family in ("ip", "ip6") for kind in ("legacy", "nft")
)
_INVALID: Final = re.compile(r"\[(\d+):\d+\] (.*--ctstate INVALID.*)")
_COUNTERS: Final = re.compile(r"\[\d+:\d+\]|^#.*$", re.MULTILINE)
_STATE: Final = re.compile(r" state \w+| expires \d+sec| linkdown")


def make(sandbox: Sandbox, cluster: Cluster, node: Node, topology: Topology) -> None:
    """Make a node as `topology` says, whatever it was before, strict about reverse paths."""
    _inside(sandbox, node, *_links(node, topology.layout), *_own(node, topology))
    for pod in node.pods:
        _inside(sandbox, pod, *_pod(node, pod, topology.layout))
    run_inside(sandbox.namespace(node), lambda: _program(cluster, node, topology))


def snapshot(sandbox: Sandbox, node: Node) -> str:
    """All of a node's network but its traffic, as text: what must be the same afterwards."""

    def look() -> str:
        found = (f"# {command}\n{_run(command.split())}" for command in _LOOKS)
        return _STATE.sub("", _COUNTERS.sub("", "\n".join(found)))

    pinned = sorted(str(path) for path in sandbox.bpffs(node).rglob("*"))
    return run_inside(sandbox.namespace(node), look) + "\n".join(["# pins", *pinned])


def dropped_as_invalid(sandbox: Sandbox, node: Node) -> dict[str, int]:
    """How many packets each rule of iptables has dropped for what conntrack thinks of them."""

    def look() -> dict[str, int]:
        lines = "".join(_run(command.split()) for command in _COUNTED).splitlines()
        found = [match for line in lines if (match := _INVALID.match(line))]
        return {match[2]: int(match[1]) for match in found}

    return run_inside(sandbox.namespace(node), look)


def _program(cluster: Cluster, node: Node, topology: Topology) -> None:
    """Sysctls and rules, in the namespace of the calling thread."""
    if topology.layout is Layout.PROXY_ARP:
        for pod in node.pods:
            (_SYSCTL / f"ipv4/conf/{pod.host_device}/proxy_arp").write_text("1")
            (_SYSCTL / f"ipv6/conf/{pod.host_device}/proxy_ndp").write_text("1")
    for name, value in topology.sysctls.items():
        (_SYSCTL / name).write_text(value)
    for file in _SYSCTL.glob("ipv4/conf/*/rp_filter"):
        file.write_text("1")
    _run(["nft", "flush", "ruleset"])
    for family in ("ip", "ip6"):
        _run([f"{family}tables-legacy-restore"], given=_LEGACY)
    _run(["ipset", "destroy"])
    for rules in topology.rules:
        for command, given in rules.given(cluster, node):
            _run(command, given=given)


def _links(node: Node, layout: Layout) -> Iterator[str]:
    """The node's ends of the links to its pods."""
    v4, v6 = node.gateways
    yield "link del cni0"
    if layout is Layout.BRIDGE:
        yield "link add cni0 type bridge mcast_snooping 0"
        yield f"address add {v4}/{node.pod_cidrs.v4.prefixlen} dev cni0"
        yield f"address add {v6}/{node.pod_cidrs.v6.prefixlen} dev cni0 nodad"
        yield "link set cni0 up"
    for number, pod in enumerate(node.pods):
        device = pod.host_device
        yield f"link set {device} down"  # takes the routes along
        yield f"address flush dev {device}"
        mac = _WORKLOAD_MAC if layout is Layout.PROXY_ARP else f"02:00:00:00:00:{number:02x}"
        yield f"link set {device} address {mac}"
        if layout is Layout.BRIDGE:
            yield f"link set {device} master cni0 up"
            continue
        yield f"link set {device} up"
        if layout is Layout.PTP:
            yield f"address add {v4}/32 dev {device}"
            yield f"address add {v6}/128 dev {device} nodad"
        yield f"route add {pod.addresses.v4}/32 dev {device} scope link"
        yield f"-6 route add {pod.addresses.v6}/128 dev {device}"


def _own(node: Node, topology: Topology) -> Iterator[str]:
    """What the node has besides: a default route, as all have, and perhaps a tunnel of the CNI."""
    yield f"route replace default via {ROUTER.v4} dev eth0"
    yield f"-6 route replace default via {ROUTER.v6} dev eth0"
    yield "link del vxlan.calico"
    if device := topology.tunnel_address:
        yield f"link add {device} type vxlan id 4096 local {node.addresses.v4} dstport 4789"
        yield f"address add {node.gateways.v4}/32 dev {device}"
        yield f"address add {node.gateways.v6}/128 dev {device} nodad"
        yield f"link set {device} up"


def _pod(node: Node, pod: Pod, layout: Layout) -> Iterator[str]:
    """The pod's end, which has all that the pod has."""
    (v4, v6), (gateway4, gateway6) = pod.addresses, map(str, node.gateways)
    length4, length6 = 32, 128
    yield "link set eth0 down"
    yield "address flush dev eth0"
    yield "link set eth0 up"
    if layout is Layout.BRIDGE:
        length4, length6 = node.pod_cidrs.v4.prefixlen, node.pod_cidrs.v6.prefixlen
    if layout is Layout.PROXY_ARP:
        gateway4, gateway6 = _ARP_GATEWAY, _WORKLOAD_IPV6
    yield f"address add {v4}/{length4} dev eth0"
    yield f"address add {v6}/{length6} dev eth0 nodad"
    if layout is not Layout.BRIDGE:
        yield f"route add {gateway4}/32 dev eth0 scope link"
        yield f"-6 route add {gateway6}/128 dev eth0"
    yield f"route add default via {gateway4} dev eth0"
    yield f"-6 route add default via {gateway6} dev eth0"


def _inside(sandbox: Sandbox, place: Node | Pod, *lines: str) -> None:
    """Run lines of `ip`. To delete what is not there is no mistake."""

    def body() -> None:
        for line in lines:
            _run(["ip", *line.split()], check="link del" not in line)

    run_inside(sandbox.namespace(place), body)


def _run(command: list[str], *, given: str = "", check: bool = True) -> str:
    done = subprocess.run(command, input=given, check=False, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}\n{given}"
    return done.stdout
