"""
`status` is red exactly when traffic fails, and names why; when that is mended, it is green again.

Each fault is made for real, on every kind of way between clusters at once, and what pods get
through is looked at before, while it lasts, and afterwards. Ways that it does not concern stay
green.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import combinations, product
from typing import Final, NamedTuple, TypeAlias

import pytest

from clustermesh.sandbox.model import Networks

from .capture import Capture
from .conftest import NewMesh
from .faults import (
    NETWORK,
    another_key,
    nft_rules,
    no_agent,
    on_the_wire,
    rewritten,
    routing_rules,
    second_link,
    unrouted,
)
from .mesh import Mesh, Report, cli, eventually

NAMED_WITHIN: Final = 40.0  # seconds: a look takes up to ten, and the machine may be busy
NO_AGENT: Final = "its agent does not run; packets get there and back"
SILENT: Final = "it does not answer at $there either: it is down, cut off"
NO_ROUTE: Final = "this node has no route to"
NOT_OURS: Final = "to eth0, and not by our route: it is missing, or a rule comes before ours"
NO_WAY_BACK: Final = "it has no route back to this node"
FILTERED_HERE: Final = "this node drops what comes from there: rp_filter is strict on"
FILTERED_THERE: Final = "it drops what we send: its rp_filter is strict where that arrives"
ONLY_PROBES: Final = "it answers no probes, but has our answers to its own"

ONE, TWO, THREE = "cluster1/node1", "cluster2/node1", "cluster3/node1"
_ADDRESSES: Final = {
    place: (f"172.30.{number}.1", f"fd00:30::{number}:1")
    for number, place in enumerate((ONE, TWO, THREE), 1)
}
_TRIANGLE: Final = (
    *("--clusters=3", "--nodes=1", "--pods=1", "--routing=native"),
    "--agent=cluster1:cluster-routing=cluster2=tunnel,cluster3=direct",
    "--agent=cluster2:cluster-routing=cluster1=tunnel",
    "--agent=cluster3:cluster-routing=cluster1=direct",
)


class Way(NamedTuple):
    """From node to node, by an IP version of pods."""

    here: str
    there: str
    version: int


Causes: TypeAlias = Mapping[Way, str]
"""What is to be said of the ways that fail."""


def causes(here: str, there: str, cause: str, *, versions: Collection[int] = (4, 6)) -> Causes:
    """
    One of both versions of IP.

    Args:
        cause: may have a `$there`: the address of the other end that packets are sent to.
    """
    is_wrapped = {here, there} == {ONE, TWO}  # over IPv4, also what is IPv6 inside
    return {
        Way(here, there, version): cause.replace(
            "$there", _ADDRESSES[there][version == 6 and not is_wrapped]
        )
        for version in versions
    }


@pytest.fixture(scope="module")
def mesh(new_mesh: NewMesh) -> Iterator[Mesh]:
    """
    Three clusters: from one to two by a tunnel, from one to three directly, and from two to three
    by the network, which knows the pods of these two only.
    """
    made = new_mesh("causes", *_TRIANGLE)
    with unrouted(made, *made.node(ONE).pod_cidrs):
        yield made


@pytest.fixture(scope="module")
def encrypted(new_mesh: NewMesh) -> Mesh:
    return new_mesh("keys", "--nodes=1", "--pods=1", "--routing=native", "--encryption=wireguard")


def test_what_is_blocked_and_where(mesh: Mesh) -> None:
    port = "UDP port 8472 (VXLAN) is blocked on the way"
    network = "the network does not carry packets between pods"
    expected = {
        **causes(ONE, TWO, f"{port} to $there"),
        **causes(TWO, ONE, f"{port} from $there"),
        **causes(ONE, THREE, f"{network} to $there"),
        **causes(THREE, ONE, f"{network} from $there"),
        **causes(TWO, THREE, f"{network} to $there"),
        **causes(THREE, TWO, f"{network} from $there"),
    }
    pods = [f"iifname eth0 {source} drop" for source in nft("saddr", mesh.node(ONE).pod_cidrs)]
    with broken(
        mesh,
        expected,
        nft_rules(mesh, TWO, "filter hook input", "udp dport 8472 drop"),
        nft_rules(mesh, THREE, "filter hook prerouting", *pods),
        unrouted(mesh, *mesh.node(THREE).pod_cidrs),
    ):
        pass


def test_a_blocked_port_of_wireguard(encrypted: Mesh) -> None:
    port = "UDP port 51871 (WireGuard) is blocked on the way"
    expected = {**causes(ONE, TWO, port), **causes(TWO, ONE, port)}
    drop = nft_rules(encrypted, TWO, "filter hook input", "udp dport 51871-51874 drop")
    with broken(encrypted, expected, drop):
        pass


def test_an_mtu_that_is_wrong(mesh: Mesh) -> None:
    """A segment tells nobody what would fit. The router of the network does, so that is well."""
    expected = {
        **causes(ONE, TWO, too_large(1450, 1350)),
        **causes(TWO, ONE, too_large(1450, 1350)),
        **causes(ONE, THREE, too_large(1500, 1400)),
        **causes(THREE, ONE, too_large(1500, 1400)),
    }
    with broken(mesh, expected, on_the_wire(mesh, ONE, "mtu 1400", "mtu 1500"), size=1380):
        assert not broken_ones(mesh, size=100), "small packets do pass"


def test_an_mtu_that_is_wrong_for_what_is_encrypted(encrypted: Mesh) -> None:
    expected = {
        **causes(ONE, TWO, too_large(1440, 1340)),
        **causes(TWO, ONE, too_large(1440, 1340)),
    }
    narrow = on_the_wire(encrypted, ONE, "mtu 1400", "mtu 1500")
    with broken(encrypted, expected, narrow, size=1380):
        assert not broken_ones(encrypted, size=100), "small packets do pass"


def test_reverse_path_filters_of_nodes_with_two_links(mesh: Mesh) -> None:
    """
    What comes in on the second link has its way back by the first: asymmetric, so dropped.

    IPv6 has no such filter; in a tunnel over IPv4 it is dropped too.
    """
    expected = {
        **causes(ONE, TWO, FILTERED_HERE),
        **causes(TWO, ONE, FILTERED_THERE),
        **causes(ONE, THREE, FILTERED_HERE, versions=[4]),
        **causes(THREE, ONE, FILTERED_THERE, versions=[4]),
        **causes(TWO, THREE, FILTERED_HERE, versions=[4]),
        **causes(THREE, TWO, FILTERED_THERE, versions=[4]),
    }
    links = second_link(mesh, ONE, TWO, THREE), second_link(mesh, TWO, NETWORK)
    with broken(mesh, expected, *links):
        pass


def test_reverse_path_filters_drop_what_is_encrypted_too(encrypted: Mesh) -> None:
    expected = {**causes(ONE, TWO, FILTERED_HERE), **causes(TWO, ONE, FILTERED_THERE)}
    with broken(encrypted, expected, second_link(encrypted, ONE, TWO)):
        pass


def test_a_source_address_that_is_masqueraded(mesh: Mesh) -> None:
    """Packets get through, and that is not enough: policies and logs would know another pod."""
    assert seen(mesh, ONE, TWO) == {"10.1.1.11"}
    expected = {
        **causes(ONE, TWO, "what we send from 10.1.1.1 arrives from 172.30.1.1", versions=[4]),
        **causes(ONE, THREE, "what we send from 10.1.1.1 arrives from 172.30.1.1", versions=[4]),
        **causes(
            ONE, THREE, "what we send from fd00:10:1:1::1 arrives from fd00:30::1:1", versions=[6]
        ),
        **causes(TWO, ONE, "what we send from 10.2.1.1 arrives from 172.30.2.1", versions=[4]),
        **causes(TWO, THREE, "what we send from 10.2.1.1 arrives from 172.30.2.1", versions=[4]),
        **causes(
            TWO, THREE, "what we send from fd00:10:2:1::1 arrives from fd00:30::2:1", versions=[6]
        ),
    }
    with ExitStack() as faults:
        for place in (ONE, TWO):
            faults.enter_context(
                nft_rules(
                    mesh,
                    place,
                    "nat hook postrouting priority -1",
                    "oifname { eth0, cm_vxlan } masquerade",
                )
            )
        eventually("pods are masqueraded", lambda: seen(mesh, ONE, TWO) == {"172.30.1.1"})
        eventually("it is named", partial(are_named, mesh, expected), NAMED_WITHIN)
    eventually("all is well again", partial(are_named, mesh, {}), NAMED_WITHIN)
    eventually("pods are seen", lambda: seen(mesh, ONE, TWO) == {"10.1.1.11"})


def test_what_a_masqueraded_source_is_answered_is_encrypted_too(encrypted: Mesh) -> None:
    expected = causes(ONE, TWO, "what we send from 10.1.1.1 arrives from 172.30.1.1", versions=[4])
    masquerade = nft_rules(
        encrypted, ONE, "nat hook postrouting priority -1", "oifname cm_wg00 masquerade"
    )
    with Capture(encrypted) as capture, masquerade:
        eventually("pods are masqueraded", lambda: seen(encrypted, ONE, TWO) == {"172.30.1.1"})
        eventually("it is named", partial(are_named, encrypted, expected), NAMED_WITHIN)
    assert capture.plain == []
    eventually("all is well again", partial(are_named, encrypted, {}), NAMED_WITHIN)


def test_a_route_that_is_missing(mesh: Mesh) -> None:
    expected = {
        **causes(ONE, TWO, NO_ROUTE),
        **causes(TWO, ONE, NO_WAY_BACK),
        **causes(ONE, THREE, NO_ROUTE),
        **causes(THREE, ONE, NO_WAY_BACK),
        **causes(TWO, THREE, NO_ROUTE),
        **causes(THREE, TWO, NO_WAY_BACK),
    }
    two, three = (mesh.node(place).pod_cidrs for place in (TWO, THREE))
    with broken(
        mesh,
        expected,
        routing_rules(mesh, ONE, "unreachable", *two, *three),
        routing_rules(mesh, TWO, "unreachable", *three),
    ):
        pass


def test_a_route_that_comes_before_ours(mesh: Mesh) -> None:
    expected = {
        **causes(ONE, TWO, NOT_OURS),
        **causes(TWO, ONE, NO_WAY_BACK),
        **causes(ONE, THREE, NOT_OURS),
        **causes(THREE, ONE, NO_WAY_BACK),
    }
    others = [cidr for place in (TWO, THREE) for cidr in mesh.node(place).pod_cidrs]
    with broken(mesh, expected, routing_rules(mesh, ONE, "lookup 77", *others)):
        pass


def test_a_route_that_comes_before_ours_is_not_taken_in_plain_text(encrypted: Mesh) -> None:
    """Though the network would carry it."""
    expected = {**causes(ONE, TWO, NOT_OURS), **causes(TWO, ONE, NO_WAY_BACK)}
    rules = routing_rules(encrypted, ONE, "lookup main", *encrypted.node(TWO).pod_cidrs)
    with broken(encrypted, expected, rules):
        pass


def test_a_cidr_that_overlaps(mesh: Mesh) -> None:
    """Two claims what is one's. What the network does with it, where that routes, is its own."""
    claimed = dict(
        zip(map(str, mesh.node(TWO).pod_cidrs), map(str, mesh.node(ONE).pod_cidrs), strict=True)
    )
    said = {
        v: f"is refused: overlaps {cidr}" for v, cidr in zip((4, 6), claimed.values(), strict=True)
    }
    expected = {
        Way(here, TWO, version): said[version] for here, version in product((ONE, THREE), said)
    }
    with rewritten(mesh.manifests_dir("cluster2") / "cluster.yaml", claimed):
        eventually("it is named", partial(are_named, mesh, expected, (ONE, THREE)), NAMED_WITHIN)
        assert broken_ones(mesh) >= {Way(ONE, TWO, version) for version in said}
    eventually("all is well again", partial(are_named, mesh, {}), NAMED_WITHIN)
    assert not broken_ones(mesh)


def test_a_key_that_is_not_the_published_one(encrypted: Mesh) -> None:
    """A node has made itself another key, and nobody is there to publish it."""
    expected = causes(ONE, TWO, "it uses the WireGuard key")
    with another_key(encrypted, TWO, "cluster2/apiserver"):
        eventually("it is named", partial(are_named, encrypted, expected, [ONE]), NAMED_WITHIN)
        assert len(broken_ones(encrypted)) == 2
    eventually("all is well again", partial(are_named, encrypted, {}), NAMED_WITHIN)
    assert not broken_ones(encrypted)


def test_a_node_that_does_not_answer(mesh: Mesh) -> None:
    """From its own side, it is the others that do not."""
    expected = {
        **causes(ONE, TWO, SILENT),
        **causes(TWO, ONE, SILENT),
        **causes(TWO, THREE, SILENT),
        **causes(THREE, TWO, SILENT),
    }
    with broken(mesh, expected, on_the_wire(mesh, TWO, "down", "up")):
        said = cli(*connectivity_test(mesh, ONE), code=1)
        assert "it does not answer at 172.30.2.1 either" in said
    assert "all is well" in cli(*connectivity_test(mesh, ONE))


def test_a_node_that_does_not_answer_what_is_encrypted(encrypted: Mesh) -> None:
    expected = {**causes(ONE, TWO, SILENT), **causes(TWO, ONE, SILENT)}
    with broken(encrypted, expected, on_the_wire(encrypted, TWO, "down", "up")):
        pass


def test_a_firewall_that_drops_probes_is_no_way_that_fails(mesh: Mesh) -> None:
    """The other end still probes us: by that it knows, and says, that packets get through."""
    expected = {**causes(ONE, THREE, ONLY_PROBES), **causes(TWO, THREE, ONLY_PROBES)}
    with nft_rules(mesh, THREE, "filter hook input", "udp dport 4240 drop"):
        eventually("it is noticed", lambda: notes(mesh, ONE, TWO) == expected, NAMED_WITHIN)
        assert are_named(mesh, {})
        assert not broken_ones(mesh)
    eventually("it is over", lambda: not notes(mesh, ONE, TWO), NAMED_WITHIN)


def test_an_agent_that_is_dead_is_no_way_that_fails(mesh: Mesh) -> None:
    """Its kernel carries on, and says of the probe that nobody is there to take it."""
    expected = {**causes(TWO, ONE, NO_AGENT), **causes(THREE, ONE, NO_AGENT)}
    with no_agent(mesh, ONE):
        eventually("it is noticed", lambda: notes(mesh, TWO, THREE) == expected, NAMED_WITHIN)
        assert are_named(mesh, {}, (TWO, THREE))
        assert not broken_ones(mesh)
        assert mesh.run(TWO, "curl", "-s", "http://127.0.0.1:9879/readyz") == "ready\n"


@contextmanager
def broken(
    mesh: Mesh, expected: Causes, *faults: AbstractContextManager[None], size: int = 100
) -> Iterator[None]:
    """
    Have faults for a while, and see that they are named.

    Before and after pods get through to each other, and meanwhile just those do of whose ways there
    is nothing to say. A ping goes both ways, so it fails if one of them does.
    """
    ways = {Way(min(w[:2]), max(w[:2]), w.version) for w in expected}
    assert not broken_ones(mesh, size=size)
    with ExitStack() as made:
        for fault in faults:
            made.enter_context(fault)
        eventually("it is named", partial(are_named, mesh, expected), NAMED_WITHIN)
        assert broken_ones(mesh, size=size) == ways
        yield
    eventually("all is well again", partial(are_named, mesh, {}), NAMED_WITHIN)
    assert not broken_ones(mesh, size=size)


def are_named(mesh: Mesh, expected: Causes, places: Collection[str] = ()) -> bool:
    """Whether just these ways are red on all nodes, or on some, each with its cause."""
    for place in places or [node.place for node in mesh.nodes]:
        said = {way: row["failing"] for way, row in ways_of(mesh, place) if row["state"] != "well"}
        assert said.keys() == {way for way in expected if way.here == place}, said
        troubles = mesh.troubles(place)
        assert bool(troubles) == bool(said), troubles
        for way, text in said.items():
            assert expected[way] in text
            assert expected[way] in troubles
    return True


def notes(mesh: Mesh, *places: str) -> Causes:
    """What one should know of ways that are well, on some nodes."""
    return {w: row["note"] for place in places for w, row in ways_of(mesh, place) if row["note"]}


def ways_of(mesh: Mesh, place: str) -> Iterator[tuple[Way, Report]]:
    """The ways of a node, as they are shown."""
    for row in mesh.reply(place, "paths")["rows"]:
        yield Way(place, f"{row['cluster']}/{row['node']}", 4 if row["ip"] == "IPv4" else 6), row


def broken_ones(mesh: Mesh, *, size: int = 100) -> set[Way]:
    """The ways, each in one direction, by which pods get no answer to a ping."""
    pods = {node.place: node.pods[0] for node in mesh.nodes}
    ways = [Way(a, b, v) for (a, b), v in product(combinations(sorted(pods), 2), (4, 6))]

    def is_broken(way: Way) -> bool:
        ip = pods[way.there].addresses[way.version == 6]
        # The first in each direction may be too large, and be answered with what would fit.
        ping = ("ping", "-n", "-c", "4", "-i", "0.2", "-W", "1", "-s", str(size), str(ip))
        return mesh.attempt(pods[way.here].place, *ping).returncode != 0

    with ThreadPoolExecutor(len(ways)) as pool:
        return {way for way, result in zip(ways, pool.map(is_broken, ways), strict=True) if result}


def seen(mesh: Mesh, here: str, there: str) -> set[str]:
    """The source address of a pod, as a pod of another cluster sees it."""
    client, server = (mesh.node(place).pods[0] for place in (here, there))
    return set(mesh.call(client.place, "udp", server.addresses.v4, 8080)["clients"])


def too_large(size: int, passing: int) -> str:
    return f"packets of {size} bytes are lost on the way to $there, and up to {passing} pass"


def nft(end: str, networks: Networks) -> Iterator[str]:
    """What matches the source (saddr) or destination (daddr) of packets."""
    yield f"ip {end} {networks.v4}"
    yield f"ip6 {end} {networks.v6}"


def connectivity_test(mesh: Mesh, place: str) -> list[str]:
    command = ["clustermesh", "connectivity", "test"]
    return ["sandbox", "exec", "--name", mesh.name, place, "--", *command]
