"""What would be wrong with connecting clusters. Pure: rows in, findings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_network
from itertools import combinations
from typing import NamedTuple

from clustermesh.model import IPNetwork

from .plan import Link, server_name
from .rows import ClusterRow

_TOLD = 3
"""Overlaps of two clusters that are told one by one: with the same plan all of them overlap."""


class Finding(NamedTuple):
    """Something that is wrong, or that one should know."""

    text: str
    hint: str = ""
    is_fatal: bool = True


def findings(clusters: Sequence[ClusterRow], links: Iterable[Link]) -> Iterator[Finding]:
    """
    Everything that speaks against connecting `clusters` by `links`, worst first within a kind.

    What they are connected with already is not looked at again.
    """
    for cluster in clusters:
        yield from _of_one(cluster)
    for one, other in combinations(clusters, 2):
        yield from _of_two(one, other)
        yield from _overlaps(one, other)
    yield from _of_links(clusters, links)


def _of_one(cluster: ClusterRow) -> Iterator[Finding]:
    name = cluster.name
    if cluster.peers_by_chart:
        yield Finding(
            f"{name}: its connected clusters are written by helm, which would undo it",
            "add them to clustermesh.config.clusters, or set clustermesh.config.enabled=false",
        )
    if cluster.user not in {"remote", f"remote-{name}"}:
        yield Finding(
            f"{name}: its agents would log in elsewhere as {cluster.user!r}, whom nobody knows",
            f"the CN in Secret clustermesh-apiserver-remote-cert has to be remote-{name}",
        )
    for node in cluster.nodes:
        if not node.pod_cidrs:
            yield Finding(
                f"{name}: node {node.name} has no pod CIDR: others cannot reach its pods",
                "let the CNI take its addresses from spec.podCIDRs of the Node",
                is_fatal=False,
            )
            break


def _of_two(one: ClusterRow, other: ClusterRow) -> Iterator[Finding]:
    pair = f"{one.name} ({one.context}) and {other.name} ({other.context})"
    if one.name == other.name:
        yield Finding(f"{pair} have one name", "install one of them under another name")
    if one.id == other.id:
        yield Finding(
            f"{pair} both have the cluster id {one.id}", "install one of them with another id"
        )
    if one.max_connected_clusters != other.max_connected_clusters:
        numbers = f"{one.max_connected_clusters} and {other.max_connected_clusters}"
        yield Finding(
            f"{pair} disagree about how many clusters there can be: {numbers}",
            "clustermesh.maxConnectedClusters must be the same in all",
        )
    there, back = one.routing_to(other.name), other.routing_to(one.name)
    if there != back:
        yield Finding(
            f"{pair} route differently: {there} and {back}",
            "agent.routing must be the same in all, or agent.clusterRouting say so in both",
        )
    elif there == "tunnel" and one.tunnel != other.tunnel:
        yield Finding(
            f"{pair} have different tunnels: {one.tunnel} and {other.tunnel}",
            "agent.tunnelProtocol and agent.tunnelPort must be the same in all",
        )
    if one.encryption != other.encryption:
        yield Finding(
            f"{pair} encrypt differently: {one.encryption} and {other.encryption}",
            "the encryption of agents must be the same in all: nothing else passes",
        )
    if one.version != other.version:
        yield Finding(
            f"{pair} run different versions: {one.version} and {other.version}",
            "that works; upgrade the older one soon",
            is_fatal=False,
        )


class _Claim(NamedTuple):
    """Addresses that a cluster uses."""

    cidr: IPNetwork
    cluster: str
    kind: str  # node, pods, services
    node: str = ""

    def __str__(self) -> str:
        match self.kind:
            case "node":
                return f"{self.cidr.network_address} of node {self.cluster}/{self.node}"
            case "pods":
                return f"pod CIDR {self.cidr} of {self.cluster}/{self.node}"
        return f"service CIDR {self.cidr} of {self.cluster}"


def _overlaps(one: ClusterRow, other: ClusterRow) -> Iterator[Finding]:
    fatal = 0
    for holder, claim in _shared([*_claims(one), *_claims(other)]):
        text = f"{claim} is in {holder}" if claim.cidr != holder.cidr else f"{claim} is {holder}"
        if holder.kind == claim.kind == "services":
            yield Finding(text, "that works: a ClusterIP never leaves its cluster", is_fatal=False)
        elif (fatal := fatal + 1) <= _TOLD:
            yield Finding(text, "the nodes and pods of a mesh need addresses of their own")
    if fatal > _TOLD:
        yield Finding(f"{fatal - _TOLD} more addresses of {one.name} and {other.name} overlap")


def _claims(cluster: ClusterRow) -> Iterator[_Claim]:
    for node in cluster.nodes:
        for address in node.addresses:
            yield _Claim(ip_network(address), cluster.name, "node", node.name)
        for cidr in node.pod_cidrs:
            yield _Claim(cidr, cluster.name, "pods", node.name)
    for cidr in cluster.service_cidrs:
        yield _Claim(cidr, cluster.name, "services")


def _shared(claims: Iterable[_Claim]) -> Iterator[tuple[_Claim, _Claim]]:
    """What of one cluster lies in what of another. Networks nest, or have nothing in common."""
    around: list[_Claim] = []
    for claim in sorted(claims, key=_place):
        around = [
            holder
            for holder in around
            if holder.cidr.version == claim.cidr.version
            and int(holder.cidr.broadcast_address) >= int(claim.cidr.network_address)
        ]
        yield from ((holder, claim) for holder in around if holder.cluster != claim.cluster)
        around.append(claim)


def _place(claim: _Claim) -> tuple[int, int, int]:
    return claim.cidr.version, int(claim.cidr.network_address), claim.cidr.prefixlen


def _of_links(clusters: Sequence[ClusterRow], links: Iterable[Link]) -> Iterator[Finding]:
    by_context = {cluster.context: cluster for cluster in clusters}
    missing = set[str]()
    for link in links:
        reader, peer = by_context[link.reader], by_context[link.peer]
        if peer.context not in missing:
            missing.add(peer.context)
            if not peer.endpoints:
                yield Finding(
                    f"{peer.name}: others cannot reach its etcd: {peer.no_endpoint}",
                    f"clustermesh enable --context {peer.context} --service-type …, or say "
                    f"--endpoint {peer.name}=HOST:PORT",
                )
            elif server_name(peer) is None:
                names = ", ".join(peer.server_names) or "no names"
                yield Finding(
                    f"{peer.name}: the certificate of its etcd is for {names}",
                    f"clustermesh.apiserver.tls.server.extraDnsNames={{{peer.name}.mesh.cilium.io}}",
                )
        for trusting, trusted in ((reader, peer), (peer, reader)):
            known = {authority.fingerprint for authority in trusting.trusted}
            if trusted.authority.fingerprint not in known and trusting.bundle_by_chart:
                yield Finding(
                    f"{trusting.name} does not trust the CA of {trusted.name}, "
                    "and its bundle is written by helm",
                    f"add {trusted.authority.name!r} to tls.caBundle.content",
                )
