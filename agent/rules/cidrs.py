"""
Which addresses belong to which cluster, and who is refused what is somebody else's.

Whether two CIDRs overlap is a property of all of them, so this rule looks at everything at once.
CIDRs either nest or are disjoint, so an overlap is an accepted one above or below.

Of two clusters that claim an address our own wins, always, and of two others the one with the
lower cluster id: every agent comes to the same answer, whatever it heard first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_network
from typing import Final, NamedTuple

import msgspec

from agent.rows import Cidr, NodeName, Reserved
from clustermesh.model import NOTHING, ClusterName, IPAddress, IPNetwork, Node
from clustermesh.state import Table

_NOBODY: Final = ClusterName("")


class CidrKey(NamedTuple):
    """A claim: these addresses belong to this node of this cluster."""

    cidr: IPNetwork
    cluster: ClusterName
    node: str

    def __str__(self) -> str:
        return f"{self.cidr} of {self.cluster}/{self.node}"


def cidrs(
    nodes: Iterable[Node],
    own: ClusterName,
    reserved: Iterable[tuple[IPNetwork, Reserved]] = (),
    allowed: Collection[IPNetwork] = (),
    closed: Mapping[NodeName, str] = NOTHING,
) -> Mapping[CidrKey, Cidr]:
    """
    What every node claims, its pod CIDRs and its own addresses, and what of it is refused.

    A node's own address is nobody else's, but whether pods' packets to it may be led to that node
    is another question: it is no more than what a peer says of a network that we may be on.

    Args:
        closed: the nodes that nothing may be sent to, and why. Their addresses are still theirs.
        reserved: what other clusters' pods cannot have, such as the networks that we are on.
        allowed: what must be in it to be routed; empty: anything that is nobody's.
    """
    claims = sorted(
        # A claim may be made twice, by a node whose ExternalIP is its InternalIP.
        dict(claim for node in nodes for claim in _claims(node)).items(),
        key=lambda item: (
            item[1].cluster != own,
            item[1].cluster_id,
            item[0].cidr.version,
            int(item[0].cidr.network_address),
            item[0].cidr.prefixlen,
            item[0].node,
        ),
    )
    judge = _Judge(own, reserved, allowed)
    rows: dict[CidrKey, Cidr] = {}
    lost: dict[NodeName, set[IPAddress]] = {}
    for key, claim in claims:
        name = NodeName(key.cluster, key.node)
        refused = judge.refusal(key, claim)
        if refused and claim.is_node:
            lost.setdefault(name, set()).add(key.cidr.network_address)
        unrouted = "" if refused else judge.unrouted(key, claim)
        reason = closed.get(name, "")
        rows[key] = (
            msgspec.structs.replace(claim, refused=refused, closed=reason, unrouted=unrouted)
            if refused or reason or unrouted
            else claim
        )
    for key, row in rows.items() if lost else ():
        if gone := lost.get(NodeName(key.cluster, key.node)):
            rows[key] = _without(row, gone)
    return rows


def overlapping(cidrs: Iterable[IPNetwork], others: Iterable[IPNetwork]) -> set[IPNetwork]:
    """Those of `cidrs` that share an address with one of `others`."""
    accepted = _Accepted()
    for other in others:
        accepted.add(CidrKey(other, _NOBODY, ""))
    return {cidr for cidr in cidrs if accepted.overlaps(cidr)}


class _Judge:
    """Decides on one claim after the other, those that win first."""

    def __init__(
        self,
        own: ClusterName,
        reserved: Iterable[tuple[IPNetwork, Reserved]],
        allowed: Collection[IPNetwork],
    ) -> None:
        self._own = own
        self._allowed = allowed
        self._accepted = _Accepted()
        self._off_limits = _Accepted()
        self._etcds: dict[IPNetwork, str] = {}
        for network, row in reserved:
            self._off_limits.add(CidrKey(network, row.cluster or _NOBODY, row.what))
            if row.cluster is not None:
                self._etcds[network] = row.what

    def refusal(self, key: CidrKey, claim: Cidr) -> str:
        """Why the claim does not stand; empty if it does."""
        if holder := self._accepted.holder(key):
            return f"overlaps {holder}"
        if claim.cluster != self._own and not claim.is_node and (why := self._trespass(key)):
            return why
        self._accepted.add(key)
        return ""

    def unrouted(self, key: CidrKey, claim: Cidr) -> str:
        """Why pods' packets to a node's own address are not led to the node; empty if they are."""
        if claim.cluster == self._own or not claim.is_node:
            return ""
        if key.cidr.network_address not in claim.node_ips:
            return "it is no InternalIP"
        if claim.external is not None:
            return f"its node is reached at {claim.external}, and here it may be another's"
        if etcd := self._etcds.get(key.cidr):
            return f"it is {etcd}, which has to be reached before there is a way"
        return "" if self._is_allowed(key.cidr) else "it is not in --mesh-cidrs"

    def _trespass(self, key: CidrKey) -> str:
        """Why no pod of another cluster can have the addresses `key`; empty if it can."""
        if reserved := self._off_limits.holder(key):
            return f"overlaps {reserved.cidr}, {reserved.node}"
        return "" if self._is_allowed(key.cidr) else "is not in --mesh-cidrs"

    def _is_allowed(self, cidr: IPNetwork) -> bool:
        return not self._allowed or any(
            cidr.version == network.version and cidr.subnet_of(network)  # type: ignore[arg-type]
            for network in self._allowed
        )


def _without(claim: Cidr, lost: Collection[IPAddress]) -> Cidr:
    """A node's address that belongs to somebody else leads to them, and not to the node."""
    return msgspec.structs.replace(
        claim,
        node_ips=tuple(ip for ip in claim.node_ips if ip not in lost),
        external=None if claim.external in lost else claim.external,
    )


def _claims(node: Node) -> Iterator[tuple[CidrKey, Cidr]]:
    addresses = tuple(ip for kind, ip in node.addresses if kind == "InternalIP")
    external = node.external_address
    own = [ip for _, ip in node.addresses] + ([external] if external else [])
    for is_node, networks in (
        (False, node.pod_cidrs),
        (True, tuple(map(_alone, own))),
    ):
        for cidr in networks:
            claim = Cidr(
                node.cluster, node.cluster_id, node.name, addresses, is_node, external=external
            )
            yield CidrKey(cidr, node.cluster, node.name), claim


@lru_cache(maxsize=65536)
def _alone(ip: IPAddress) -> IPNetwork:
    """`ip` as a network: remembered, since all claims are looked at whenever one has changed."""
    return ip_network(ip)


class _Accepted:
    """The claims that stand so far, to find one that overlaps another. Addresses are integers."""

    def __init__(self) -> None:
        # By IP version: by the length of the prefix, by its first address.
        self._claims: dict[int, dict[int, dict[int, CidrKey]]] = {4: {}, 6: {}}
        self._starts: dict[int, list[tuple[int, int]]] = {4: [], 6: []}  # (first address, length)

    def add(self, key: CidrKey) -> None:
        cidr, first = key.cidr, int(key.cidr.network_address)
        self._claims[cidr.version].setdefault(cidr.prefixlen, {})[first] = key
        insort(self._starts[cidr.version], (first, cidr.prefixlen))

    def holder(self, key: CidrKey) -> CidrKey | None:
        """A claim that `key` may not stand beside: of another cluster, or of the same addresses."""
        for other in self._overlapping(key.cidr):
            if other.cluster != key.cluster or other.cidr == key.cidr:
                return other
        return None

    def overlaps(self, cidr: IPNetwork) -> bool:
        """Whether any claim shares an address with `cidr`."""
        return next(self._overlapping(cidr), None) is not None

    def _overlapping(self, cidr: IPNetwork) -> Iterator[CidrKey]:
        claims, starts = self._claims[cidr.version], self._starts[cidr.version]
        first, bits = int(cidr.network_address), cidr.max_prefixlen
        for length, by_start in claims.items():
            if length <= cidr.prefixlen:
                shift = bits - length
                if (above := by_start.get(first >> shift << shift)) is not None:
                    yield above
        last = first | ((1 << (bits - cidr.prefixlen)) - 1)
        for at in range(bisect_left(starts, (first, cidr.prefixlen + 1)), len(starts)):
            start, length = starts[at]
            if start > last:
                return
            if length > cidr.prefixlen:
                yield claims[length][start]


class Owners:
    """
    Whose an address is, by the claims of a table that are not refused. Follows it synchronously.

    An address is looked up in one dict for each prefix length that occurs, longest first.
    """

    def __init__(self, table: Table[CidrKey, Cidr]) -> None:
        self._table = table
        self._claims: dict[tuple[int, int], dict[int, tuple[CidrKey, Cidr]]] = {}
        table.listeners.add(self)
        for key in table.keys():
            self.touch(key)

    def owner(self, ip: IPAddress) -> Cidr | None:
        """The most specific claim that `ip` is in; None if it is nobody's that we know."""
        number, bits = int(ip), ip.max_prefixlen
        for (version, length), claims in self._claims.items():
            if version == ip.version:
                shift = bits - length
                if (found := claims.get(number >> shift << shift)) is not None:
                    return found[1]
        return None

    def touch(self, key: CidrKey) -> None:
        """A claim has come, changed or gone."""
        cidr, row = key.cidr, self._table.first(key)
        claims = self._claims_of(cidr.version, cidr.prefixlen)
        start = int(cidr.network_address)
        if row is not None and not row.refused:
            claims[start] = key, row
        elif start in claims and claims[start][0] == key:  # else it has another holder by now
            del claims[start]

    def wake(self) -> None:
        """Readiness changes nothing."""

    def _claims_of(self, version: int, length: int) -> dict[int, tuple[CidrKey, Cidr]]:
        if (version, length) not in self._claims:
            self._claims[version, length] = {}
            self._claims = dict(sorted(self._claims.items(), reverse=True))
        return self._claims[version, length]
