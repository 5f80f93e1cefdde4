"""Who is at the other end of our devices, and which lane is taken (pure)."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network

from agent.rows import Cidr, NodeName, OwnKey, Peer, PeerKey
from agent.rules.cidrs import CidrKey, cidrs
from agent.rules.peers import lanes, left_behind, not_open, peers, unheard
from clustermesh.model import ClusterId, ClusterName, Node

EAST = ClusterName("east")
IDS = {"east": 1, "west": 2, "north": 3}


def key(number: int) -> str:
    """A public key, even or odd as its number is."""
    return base64.b64encode(bytes([number] * 32)).decode()


NAMES = {key(n): f"k{n}" for n in range(1, 20)}
OURS = {key(10): OwnKey(parity=0, age=0)}
BOTH = {key(11): OwnKey(parity=1, age=0), key(10): OwnKey(parity=0, age=1)}


def node(place: str, *pod_cidrs: str, at: Iterable[str], external: str = "") -> Node:
    cluster, _, name = place.partition("/")
    return Node(
        ClusterName(cluster),
        ClusterId(IDS[cluster]),
        name,
        tuple(("InternalIP", ip_address(ip)) for ip in at),
        tuple(map(ip_network, pod_cidrs)),
        external_address=ip_address(external) if external else None,
    )


WEST = node("west/a", "10.2.1.0/24", "fd00:2::/64", at=["192.0.2.2", "2001:db8::2"])


def found(
    *nodes: Node,
    keys: Mapping[str, tuple[int, ...]],
    ours: Mapping[str, OwnKey] = OURS,
    keepalive: int = 0,
    closed: Mapping[str, str] | None = None,
) -> Mapping[PeerKey, Peer]:
    shut = {_name(place): why for place, why in (closed or {}).items()}
    claims: Mapping[CidrKey, Cidr] = cidrs(nodes, EAST, closed=shut)
    known = {_name(place): tuple(map(key, numbers)) for place, numbers in keys.items()}
    return peers(claims.items(), known, ours, own=EAST, port=51871, keepalive=keepalive)


def _name(place: str) -> NodeName:
    cluster, _, name = place.partition("/")
    return NodeName(ClusterName(cluster), name)


def show(rows: Mapping[PeerKey, Peer]) -> list[str]:
    return sorted(
        f"{at.device} {NAMES[at.public_key]} {p.cluster}/{p.node} at {p.endpoint} every"
        f" {p.keepalive}: {' '.join(map(str, p.allowed_ips))}"
        for at, p in rows.items()
    )


def test_a_peer_may_send_what_its_pods_and_itself_have() -> None:
    assert show(found(WEST, keys={"west/a": (2,)})) == [
        (
            "cm_wg00 k2 west/a at 192.0.2.2:51871 every 0:"
            " 10.2.1.0/24 192.0.2.2/32 2001:db8::2/128 fd00:2::/64"
        )
    ]


def test_our_own_cluster_and_whoever_has_no_key_or_is_closed_are_no_peers() -> None:
    east = node("east/b", "10.1.1.0/24", at=["192.0.2.1"])
    assert show(found(east, WEST, keys={"east/b": (4,)})) == []
    assert show(found(WEST, keys={"west/a": (2,)}, closed={"west/a": "no"})) == []
    nowhere = node("west/b", "10.2.2.0/24", at=[])
    assert show(found(nowhere, keys={"west/b": (4,)})) == []


def test_a_node_is_reached_from_outside_where_it_says() -> None:
    there = node("west/a", "10.2.1.0/24", at=["192.0.2.2"], external="203.0.113.9")
    assert show(found(there, keys={"west/a": (2,)}, keepalive=25)) == [
        "cm_wg00 k2 west/a at 203.0.113.9:51871 every 25: 10.2.1.0/24 192.0.2.2/32"
    ]


def test_an_endpoint_in_somebody_s_pod_network_is_not_used() -> None:
    ours = node("east/b", "10.1.1.0/24", at=["192.0.2.1"])
    inside = node("west/a", "10.2.1.0/24", at=["10.1.1.7"])
    assert show(found(ours, inside, keys={"west/a": (2,)})) == []
    outside = node("west/a", "10.2.1.0/24", at=["192.0.2.2"], external="10.1.1.7")
    assert [
        line.split(" at ")[1][:15] for line in show(found(ours, outside, keys={"west/a": (2,)}))
    ] == ["192.0.2.2:51871"]


def test_what_a_peer_was_refused_it_may_not_send_either() -> None:
    ours = node("east/b", "10.1.1.0/24", at=["192.0.2.1"])
    greedy = node("west/a", "10.2.1.0/24", "10.1.0.0/16", at=["192.0.2.2"])
    assert "10.1." not in "".join(show(found(ours, greedy, keys={"west/a": (2,)})))


def test_nobody_is_taken_for_a_node_whose_key_it_once_published() -> None:
    other = node("west/b", "10.2.2.0/24", at=["192.0.2.3"])
    alone = found(WEST, other, keys={"west/a": (2,), "west/b": (3,)})
    assert found(WEST, other, keys={"west/a": (2,), "west/b": (3, 2)}) == alone
    assert found(other, WEST, keys={"west/b": (3, 2), "west/a": (2,)}) == alone
    assert found(WEST, other, keys={"west/a": (2,), "west/b": (3, 10)}) == alone  # 10 is ours


def test_while_keys_change_there_is_a_lane_for_every_pair() -> None:
    shown = [
        line.partition(" every")[0]
        for line in show(found(WEST, keys={"west/a": (3, 2)}, ours=BOTH))
    ]
    assert shown == [
        "cm_wg00 k2 west/a at 192.0.2.2:51871",
        "cm_wg01 k3 west/a at 192.0.2.2:51873",
        "cm_wg10 k2 west/a at 192.0.2.2:51872",
        "cm_wg11 k3 west/a at 192.0.2.2:51874",
    ]


def taken(rows: Mapping[PeerKey, Peer], *answered: str) -> str:
    chosen = lanes(rows, [at for at in rows if at.device in answered])
    return " ".join(lane.device for lane in chosen.values())


def test_the_newest_lane_that_works_is_taken_and_until_then_the_oldest() -> None:
    one = found(WEST, keys={"west/a": (2,)})
    assert taken(one) == taken(one, "cm_wg00") == "cm_wg00"

    ours_changes = found(WEST, keys={"west/a": (2,)}, ours=BOTH)
    assert taken(ours_changes) == "cm_wg00"
    assert taken(ours_changes, "cm_wg00") == "cm_wg00"
    assert taken(ours_changes, "cm_wg00", "cm_wg10") == "cm_wg10"
    assert taken(ours_changes, "cm_wg10") == "cm_wg10"

    both_change = found(WEST, keys={"west/a": (3, 2)}, ours=BOTH)
    assert taken(both_change, "cm_wg00", "cm_wg01") == "cm_wg01"
    assert taken(both_change, "cm_wg00", "cm_wg01", "cm_wg10", "cm_wg11") == "cm_wg11"


def test_a_node_has_moved_when_it_answers_with_its_newest_key_on_ours() -> None:
    rows = found(WEST, keys={"west/a": (3, 2)}, ours=BOTH)
    assert {NAMES[at.public_key] for at in rows} == {"k3", "k2"}
    ours_with_its_last, newest = PeerKey("cm_wg10", key(2)), PeerKey("cm_wg11", key(3))
    assert {ours_with_its_last, newest} <= rows.keys()
    assert show_nodes(unheard(rows, {ours_with_its_last})) == "west/a"
    assert show_nodes(unheard(rows, {newest})) == ""  # the lane of its last key may be gone already


def test_a_key_stays_while_the_newest_lane_is_not_what_works() -> None:
    rows = found(WEST, keys={"west/a": (3, 2)}, ours=BOTH)
    last, crossed, newest = (
        PeerKey("cm_wg00", key(2)),
        {PeerKey("cm_wg01", key(3)), PeerKey("cm_wg10", key(2))},
        PeerKey("cm_wg11", key(3)),
    )
    assert show_nodes(left_behind(rows, {last})) == "west/a"
    assert show_nodes(left_behind(rows, crossed)) == "west/a"  # each end could do without its own
    assert show_nodes(left_behind(rows, {last, newest})) == ""
    assert show_nodes(left_behind(rows, ())) == ""  # it is dead


def test_a_key_is_not_to_be_known_before_its_lanes_are_open() -> None:
    other = node("west/b", "10.2.2.0/24", at=["192.0.2.3"])
    keys = {"west/a": (2,), "west/b": (4,)}
    both = found(WEST, other, keys=keys, ours=BOTH)
    old = {at for at in both if at.device == "cm_wg00"}
    assert show_nodes(not_open(found(WEST, other, keys=keys), old, 1)) == "west/a west/b"
    assert show_nodes(not_open(both, old, 1)) == "west/a west/b"
    assert show_nodes(not_open(both, old | {PeerKey("cm_wg10", key(2))}, 1)) == "west/b"
    assert show_nodes(not_open(both, both.keys(), 1)) == ""
    refused = PeerKey("cm_wg00", key(4)), PeerKey("cm_wg10", key(4))
    assert show_nodes(not_open(both, both.keys() - set(refused), 1)) == ""


def show_nodes(names: Iterable[NodeName]) -> str:
    return " ".join(sorted(map(str, names)))
