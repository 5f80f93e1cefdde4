"""
Which ways to the nodes of other clusters are probed, and why the other ones are not.

A way is probed between addresses that nodes have in their own pod CIDRs: only there does a probe go
as the packets of pods do, by the same routes, wrapped, encrypted and checked alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from agent.rows import Cidr
from clustermesh.model import ClusterName, IPAddress, Node

from .cidrs import CidrKey
from .routes import next_hop, tunnel_endpoint

SAMPLE: Final = 1000
"""Nodes that are probed at most: of more, each node has a sample of its own, so that together they
still probe all."""


class PathKey(NamedTuple):
    """A way to a node of another cluster, by the IP version of the pods' packets."""

    cluster: ClusterName
    node: str
    version: int

    def __str__(self) -> str:
        return f"{self.cluster}/{self.node} over IPv{self.version}"


class Probe(msgspec.Struct, frozen=True, gc=False):
    """Where to probe a way, or why not."""

    address: IPAddress | None = None  # of the node, in its pod CIDRs
    node_ip: IPAddress | None = None  # where it is reached without any of what is probed
    outside: IPAddress | None = None  # that one of its addresses to which packets are sent wrapped
    public_key: str = ""  # WireGuard's, as it publishes it
    refused: str = ""  # why there is no such way, though there should be
    unprobed: str = ""  # why nothing is known of it
    is_sampled: bool = True  # False: one of too many


def probes(
    nodes: Iterable[Node],
    claims: Mapping[CidrKey, Cidr],
    own: ClusterName,
    own_node: str,
    *,
    encrypts: bool,
    sample: int = SAMPLE,
) -> Mapping[PathKey, Probe]:
    """
    The ways from `own_node` to every node of the other clusters.

    There is none of an IP version that the pods of one of the two ends do not have.
    """
    rows = list(nodes)
    versions = {
        cidr.version
        for node in rows
        if (node.cluster, node.name) == (own, own_node)
        for cidr in node.pod_cidrs
    }
    others = [node for node in rows if node.cluster != own]
    chosen = sorted(others, key=lambda node: _rank(own_node, node))[:sample]
    sampled = {(node.cluster, node.name) for node in chosen}
    return {
        PathKey(node.cluster, node.name, version): probe
        for node in others
        for version, probe in _probes(
            node, claims, (node.cluster, node.name) in sampled, encrypts=encrypts
        )
        if version in versions
    }


def _probes(
    node: Node, claims: Mapping[CidrKey, Cidr], is_sampled: bool, *, encrypts: bool
) -> Iterator[tuple[int, Probe]]:
    for version in (4, 6):
        mine = {c: claims.get(CidrKey(c, node.cluster, node.name)) for c in node.pod_cidrs}
        found = {cidr: claim for cidr, claim in mine.items() if claim and cidr.version == version}
        if not found:
            continue
        if not is_sampled:
            yield version, Probe(unprobed=f"not among the {SAMPLE} of this node", is_sampled=False)
            continue
        refusals = {
            c: f"{c} is refused: {why}" for c, claim in found.items() if (why := _why(claim))
        }
        address = next((ip for ip in node.health_ips if ip.version == version), None)
        holder = next((cidr for cidr in found if address and address in cidr), None)
        if refusals and (holder is None or holder in refusals):
            yield version, Probe(refused=refusals[holder or next(iter(refusals))])
        elif address is None:
            yield version, Probe(unprobed="it publishes no address in its pod CIDRs")
        elif holder is None:
            yield version, Probe(unprobed=f"its {address} is not in its pod CIDRs")
        else:
            claim = found[holder]
            outside = (claim.external if encrypts else None) or tunnel_endpoint(claim)
            node_ip = next_hop(claim, version) or outside
            yield version, Probe(address, node_ip, outside, node.wireguard_public_key)


def _why(claim: Cidr) -> str:
    """Why nothing goes to these addresses; empty if it does."""
    return claim.refused or claim.closed


def _rank(own_node: str, node: Node) -> bytes:
    """Of a node in the sample of ours: random, but the same as long as both have their names."""
    names = f"{own_node}/{node.cluster}/{node.name}".encode()
    return blake2b(names, digest_size=8).digest()
