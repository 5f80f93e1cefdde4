"""What a CNI and a proxy of services make of a node, as data: devices, sysctls and rules."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from string import Template
from typing import Final, Literal, TypeAlias

import msgspec

from clustermesh.sandbox.model import Cluster, Networks, Node

Program: TypeAlias = Literal["iptables-legacy", "iptables-nft", "ipset", "nft"]


class Layout(enum.Enum):
    """How pods are linked to their node."""

    PTP = "a routed link for each, with the gateway's address on the node's end"
    BRIDGE = "ports of the bridge cni0, which has the gateway's address"
    PROXY_ARP = "a routed link for each, without an address: the node answers for 169.254.1.1"


class Rules(msgspec.Struct, frozen=True):
    """
    What a program is given on standard input, once for each family.

    The text may have $cluster, $pods (of this node) and $services, which are CIDRs; $multicast;
    $version (4 or 6); $ip (ip or ip6), $address (ipv4_addr or ipv6_addr) and $inet (inet or inet6).
    """

    program: Program
    text: str

    def given(self, cluster: Cluster, node: Node) -> Iterator[tuple[list[str], str]]:
        """The commands to run on a node, and what to give them."""
        for words in (_WORDS[4], _WORDS[6]):
            first = words["version"] == "4"
            pods = node.pod_cidrs[not first]
            values = {
                **words,
                "pods": pods,
                "cluster": cluster_cidrs(node)[not first],
                "services": cluster.service_cidrs[not first],
            }
            yield _command(self.program, words["ip"]), Template(self.text).substitute(values)


class Topology(msgspec.Struct, frozen=True):
    """A node beside which an agent has to work."""

    name: str
    layout: Layout
    rules: tuple[Rules, ...]
    sysctls: Mapping[str, str] = {}  # below /proc/sys/net
    tunnel_address: str = ""  # the device on which the node has an address of its pod CIDR
    masquerades: bool = True  # what pods send to elsewhere


def cluster_cidrs(node: Node) -> Networks:
    """What the pod CIDRs of all nodes of a cluster are in."""
    v4, v6 = node.pod_cidrs
    return Networks(v4.supernet(new_prefix=16), v6.supernet(new_prefix=48))


_WORDS: Final[Mapping[int, Mapping[str, str]]] = {
    4: {
        "version": "4",
        "ip": "ip",
        "address": "ipv4_addr",
        "inet": "inet",
        "multicast": "224.0.0.0/4",
    },
    6: {
        "version": "6",
        "ip": "ip6",
        "address": "ipv6_addr",
        "inet": "inet6",
        "multicast": "ff00::/8",
    },
}


def _command(program: Program, ip: str) -> list[str]:
    match program:
        case "nft":
            return ["nft", "-f", "-"]
        case "ipset":
            return ["ipset", "restore"]
        case _:
            kind = program.removeprefix("iptables-")
            return [f"{ip}tables-{kind}-restore", "--noflush"]
