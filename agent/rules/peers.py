"""Who is at the other end of our WireGuard devices, and which of several lanes is used."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from ipaddress import ip_network
from typing import Final

from agent.lanes import Lane, lane_of, parity
from agent.rows import Cidr, NodeName, OwnKey, Peer, PeerKey, TakenLane, UdpAddress
from clustermesh.model import ClusterName, IPAddress, IPNetwork

from .cidrs import CidrKey
from .routes import tunnel_endpoint

_KEEPALIVE: Final = 5
"""Seconds, while there are several lanes: it makes the handshake of the new one happen at once."""


def peers(
    claims: Iterable[tuple[CidrKey, Cidr]],
    keys: Mapping[NodeName, tuple[str, ...]],
    own_keys: Mapping[str, OwnKey],
    *,
    own: ClusterName,
    port: int,
    keepalive: int,
) -> Mapping[PeerKey, Peer]:
    """
    A peer for every lane to every node of the other clusters that may be sent to.

    A key that a node no longer publishes is its own only as long as nobody else has it: whoever
    publishes another node's key, and then its own again, must not be taken for that node.

    Args:
        keys: the public keys of each node that it may be using, the newest first.
        own_keys: ours, by the public half.
        port: the first of the four that lanes use, the same on every node.
        keepalive: seconds between packets to a peer that is silent; 0: none.
    """
    found: dict[PeerKey, Peer] = {}
    published = own_keys.keys() | {known[0] for known in keys.values() if known}
    for name, mine in _by_node(claims, own).items():
        endpoint = next((e for _, claim in mine if (e := _endpoint(claim))), None)
        if endpoint is None:
            continue
        outside = {ip_network(claim.external) for _, claim in mine if claim.external}
        allowed = sorted({key.cidr for key, _ in mine} - outside, key=_order)
        pairs = [
            (key, Lane(ours.parity, parity(key)), ours.age + age)
            for age, key in enumerate(keys.get(name, ()))
            if age == 0 or key not in published
            for ours in own_keys.values()
        ]
        for key, lane, age in pairs:
            peer = Peer(
                name.cluster,
                name.node,
                UdpAddress(endpoint, lane.peer_port(port)),
                tuple(allowed),
                keepalive or (_KEEPALIVE if len(pairs) > 1 else 0),
                age,
            )
            found.setdefault(PeerKey(lane.device, key), peer)
    return found


def lanes(
    peers: Mapping[PeerKey, Peer], answered: Collection[PeerKey]
) -> Mapping[NodeName, TakenLane]:
    """
    The lane to each node: the newest of those on which it has answered, else the oldest.

    Both ends receive on every lane, so neither has to know which one the other sends on.
    """
    chosen: dict[NodeName, tuple[tuple[bool, int], PeerKey, Peer]] = {}
    for key, peer in peers.items():
        name = NodeName(peer.cluster, peer.node)
        has_answered = key in answered
        rank = (not has_answered, peer.age if has_answered else -peer.age)
        if name not in chosen or (rank, key) < chosen[name][:2]:
            chosen[name] = rank, key, peer
    return {
        name: TakenLane(key.device, peer.endpoint.ip) for name, (_, key, peer) in chosen.items()
    }


def not_open(peers: Mapping[PeerKey, Peer], there: Collection[PeerKey], own: int) -> set[NodeName]:
    """
    The nodes that we have open lanes to, but not all those of our key `own` (0 even, 1 odd).

    Nor has a node all of them for which no rule has made any yet. A node that no lane leads to,
    because the device refuses it, loses nothing when we change our key.
    """
    reached, new, shut = set(), set(), set()
    for key, peer in peers.items():
        name = NodeName(peer.cluster, peer.node)
        if lane_of(key.device).own == own:
            new.add(name)
            if key not in there:
                shut.add(name)
        elif key in there:
            reached.add(name)
    return {name for name in reached if name in shut or name not in new}


def unheard(peers: Mapping[PeerKey, Peer], working: Collection[PeerKey]) -> set[NodeName]:
    """
    The nodes that do not answer on their newest lane: that of our current key and theirs.

    On a lane of its previous key a node may never do: it too retires that when it has moved.
    """
    return {
        NodeName(peer.cluster, peer.node)
        for key, peer in peers.items()
        if peer.age == 0 and key not in working
    }


def left_behind(peers: Mapping[PeerKey, Peer], working: Collection[PeerKey]) -> set[NodeName]:
    """
    The nodes that answer, but not on their newest lane. Neither end may let a key go for them.

    If one end judged that its older key is not needed because its newer one works with an older one
    of the other, and the other did the same, nothing would be left.
    """
    on_older = {
        NodeName(peer.cluster, peer.node)
        for key, peer in peers.items()
        if peer.age > 0 and key in working
    }
    return unheard(peers, working) & on_older


def _by_node(
    claims: Iterable[tuple[CidrKey, Cidr]], own: ClusterName
) -> Mapping[NodeName, list[tuple[CidrKey, Cidr]]]:
    """What each node of another cluster has, and is reached for."""
    found: dict[NodeName, list[tuple[CidrKey, Cidr]]] = {}
    for key, claim in claims:
        if claim.cluster != own and not claim.refused and not claim.closed:
            found.setdefault(NodeName(claim.cluster, claim.node), []).append((key, claim))
    return found


def _endpoint(claim: Cidr) -> IPAddress | None:
    """The address from outside if the node has one, else that which tunnels go to."""
    return claim.external or tunnel_endpoint(claim)


def _order(cidr: IPNetwork) -> tuple[int, int, int]:
    return cidr.version, int(cidr.network_address), cidr.prefixlen
