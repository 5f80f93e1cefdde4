"""Whom nothing may be sent to, and why."""

from __future__ import annotations

import base64
from collections.abc import Collection

from agent.rules.keys import closed
from clustermesh.model import ClusterId, ClusterName, Node

EAST = ClusterName("east")
IDS = {"east": 5, "west": 2, "north": 3}
OURS, THEIRS, OTHER = (base64.b64encode(bytes([n] * 32)).decode() for n in (1, 2, 3))


def node(place: str, key: str) -> Node:
    cluster, _, name = place.partition("/")
    return Node(
        ClusterName(cluster), ClusterId(IDS[cluster]), name, (), (), wireguard_public_key=key
    )


def shown(*nodes: Node, encrypts: bool = True, own: Collection[str] = (OURS,)) -> list[str]:
    found = closed(nodes, EAST, own, encrypts=encrypts)
    return [f"{name}: {why}" for name, why in found.items()]


def test_nodes_with_a_key_each_are_open() -> None:
    assert shown(node("east/a", OURS), node("west/a", THEIRS), node("north/a", OTHER)) == []


def test_both_sides_have_to_encrypt() -> None:
    assert shown(node("west/a", "")) == [
        "west/a: we encrypt, and it has no WireGuard key: see --encryption there"
    ]
    assert shown(node("west/a", THEIRS), encrypts=False, own=()) == [
        "west/a: it encrypts, and we do not: see --encryption"
    ]
    assert shown(node("west/a", ""), encrypts=False, own=()) == []


def test_our_own_nodes_are_none_of_this_business() -> None:
    assert shown(node("east/a", ""), node("east/b", "AAAA")) == []


def test_a_key_is_one_node_s_alone() -> None:
    assert shown(node("west/a", OURS)) == ["west/a: its WireGuard key is our own"]
    assert shown(node("north/a", THEIRS), node("west/a", THEIRS), node("west/b", THEIRS)) == [
        "west/b: its WireGuard key is that of west/a",
        "north/a: its WireGuard key is that of west/a",
    ]
    assert shown(node("east/b", THEIRS), node("west/a", OTHER)) == []


def test_what_is_no_key_is_named() -> None:
    assert shown(node("west/a", "AAAA")) == ["west/a: its WireGuard key has 3 bytes, not 32"]
