"""
`status` is red exactly when traffic fails, and names why; when that is mended, it is green again.

Each fault is made for real, and what pods get through is looked at in both states.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from agent.tests.netns import sh
from clustermesh.files import replace_file
from clustermesh.sandbox.namespace import run_inside

from .conftest import NewMesh
from .mesh import Mesh, Report, cli, eventually

HERE, THERE = "cluster1/node1", "cluster2/node1"
NAMED_WITHIN: Final = 40.0  # seconds: a look takes up to ten, and the machine may be busy
NO_AGENT: Final = "its agent does not run; packets get there and back"


@pytest.fixture(scope="module")
def mesh(new_mesh: NewMesh) -> Mesh:
    return new_mesh("causes", "--nodes=1", "--pods=1")


@pytest.fixture(scope="module")
def encrypted(new_mesh: NewMesh) -> Mesh:
    return new_mesh("keys", "--nodes=1", "--pods=1", "--encryption=wireguard")


def test_a_blocked_port_and_which_and_where(mesh: Mesh) -> None:
    with broken(mesh, drops(mesh, THERE, "filter hook input", "udp dport 8472 drop")):
        named(mesh, HERE, "UDP port 8472 (VXLAN) is blocked on the way to 172.30.2.1")
        named(mesh, THERE, "UDP port 8472 (VXLAN) is blocked on the way from 172.30.1.1")


def test_a_blocked_port_of_wireguard(encrypted: Mesh) -> None:
    rule = "udp dport 51871-51874 drop"
    with broken(encrypted, drops(encrypted, THERE, "filter hook input", rule)):
        named(encrypted, HERE, "(WireGuard) is blocked on the way")
        named(encrypted, HERE, "UDP port 5187")


def test_an_mtu_that_is_wrong(mesh: Mesh) -> None:
    with broken(mesh, on_the_wire(mesh, THERE, "mtu 1400", "mtu 1500"), size=1400):
        assert reaches(mesh, size=100), "small packets do pass"
        named(mesh, HERE, "packets of 1450 bytes are lost on the way from 172.30.2.1, and up to 13")
        named(mesh, THERE, "packets of 1450 bytes are lost on the way to 172.30.1.1, and up to 13")


def test_reverse_path_filters_of_a_node_with_two_links(mesh: Mesh) -> None:
    """What comes in on the second link has its way back by the first: asymmetric, so dropped."""
    with broken(mesh, second_link(mesh)):
        named(mesh, HERE, "this node drops what comes from there: rp_filter is strict on")
        named(mesh, THERE, "it drops what we send: its rp_filter is strict where that arrives")


def test_a_source_address_that_is_masqueraded(mesh: Mesh) -> None:
    assert seen(mesh) == {"10.1.1.11"}
    masquerade = "oifname cm_vxlan masquerade"
    with drops(mesh, HERE, "nat hook postrouting priority -1", masquerade):
        eventually("pods are masqueraded", lambda: seen(mesh) == {"172.30.1.1"})
        named(mesh, HERE, "what we send from 10.1.1.1 arrives from 172.30.1.1")
    wait_until_green(mesh)
    eventually("pods are seen", lambda: seen(mesh) == {"10.1.1.11"})


@pytest.mark.parametrize(
    ("action", "cause"),
    [
        ("unreachable", "this node has no route to 10.2.1.1: Network is unreachable"),
        ("lookup 77", "this node sends what is for 10.2.1.1 to eth0, and not by our route"),
    ],
)
def test_a_route_that_is_missing_or_comes_second(mesh: Mesh, action: str, cause: str) -> None:
    mesh.run(HERE, "ip", "route", "replace", "default", "dev", "eth0", "table", "77")
    with broken(mesh, rule(mesh, HERE, f"to 10.2.0.0/16 priority 100 {action}")):
        named(mesh, HERE, cause)
        named(mesh, THERE, "it has no route back to this node")


def test_a_cidr_that_overlaps(mesh: Mesh) -> None:
    file = mesh.manifests_dir("cluster2") / "cluster.yaml"
    with broken(mesh, rewritten(file, "10.2.1.0/24", "10.1.1.0/24")):
        named(mesh, HERE, "10.1.1.0/24 of cluster2/node1 is refused: overlaps 10.1.1.0/24")
        cause = "overlaps 10.1.1.0/24 of cluster1/node1"
        eventually("the way says so", lambda: contains(way(mesh)["failing"], cause), NAMED_WITHIN)


def test_a_key_that_is_not_the_published_one(encrypted: Mesh) -> None:
    """A node has made itself another key, and nobody is there to publish it."""
    with broken(encrypted, another_key(encrypted, THERE, "cluster2/apiserver")):
        named(encrypted, HERE, "it uses the WireGuard key")


def test_a_node_that_does_not_answer(mesh: Mesh) -> None:
    with broken(mesh, on_the_wire(mesh, THERE, "down", "up")):
        named(mesh, HERE, "it does not answer at 172.30.2.1 either: it is down, cut off")
        said = cli(*connectivity_test(mesh, HERE), code=1)
        assert "it does not answer at 172.30.2.1 either" in said
    assert "all is well" in cli(*connectivity_test(mesh, HERE))


def test_a_firewall_that_drops_probes_is_no_way_that_fails(mesh: Mesh) -> None:
    """The other end still probes us: by that it knows, and says, that packets get through."""
    with drops(mesh, THERE, "filter hook input", "udp dport 4240 drop"):
        note = "it answers no probes, but has our answers to its own"
        eventually("it is noticed", lambda: {way(mesh)["note"]} == {note}, NAMED_WITHIN)
        assert way(mesh)["state"] == "well"
        assert reaches(mesh)
    eventually("it is over", lambda: {way(mesh)["note"]} == {""}, NAMED_WITHIN)


def test_an_agent_that_is_dead_is_no_way_that_fails(mesh: Mesh) -> None:
    """Its kernel carries on, and says of the probe that nobody is there to take it."""
    mesh.stop(THERE, kill=True)
    try:
        eventually(
            "it is noticed",
            lambda: {w["note"] for w in mesh.table(HERE, "paths")} == {NO_AGENT},
            NAMED_WITHIN,
        )
        assert {w["state"] for w in mesh.table(HERE, "paths")} == {"well"}
        assert mesh.troubles(HERE) == ""
        assert reaches(mesh)
        ready = mesh.run(HERE, "curl", "-s", "http://127.0.0.1:9879/readyz")
        assert ready == "ready\n"
    finally:
        mesh.start(THERE)


def named(mesh: Mesh, place: str, cause: str) -> None:
    eventually(f"{place} names it", lambda: contains(mesh.troubles(place), cause), NAMED_WITHIN)


def way(mesh: Mesh) -> Report:
    """The way over IPv4, as it is shown."""
    (found,) = [row for row in mesh.reply(HERE, "paths")["rows"] if row["ip"] == "IPv4"]
    return dict(found)


def contains(text: str, part: str) -> bool:
    assert part in text, text or "all is well"
    return True


def wait_until_green(mesh: Mesh) -> None:
    for node in mesh.nodes:
        eventually(f"{node.place} is green", partial(is_green, mesh, node.place), NAMED_WITHIN)


def is_green(mesh: Mesh, place: str) -> bool:
    ways = mesh.table(place, "paths")
    assert ways
    assert {way["state"] for way in ways} == {"well"}, ways
    assert mesh.troubles(place) == ""
    return True


def reaches(mesh: Mesh, *, size: int = 100) -> bool:
    """Whether a pod of one cluster gets an answer from one of the other."""
    pods = [node.pods[0] for node in mesh.nodes]
    ping = ("ping", "-n", "-c", "1", "-W", "1", "-s", str(size), str(pods[1].addresses.v4))
    return mesh.attempt(pods[0].place, *ping).returncode == 0


def seen(mesh: Mesh) -> set[str]:
    """The source address of a pod, as a pod of the other cluster sees it."""
    pods = [node.pods[0] for node in mesh.nodes]
    return set(mesh.call(pods[0].place, "udp", pods[1].addresses.v4, 8080)["clients"])


def connectivity_test(mesh: Mesh, place: str) -> list[str]:
    command = ["clustermesh", "connectivity", "test"]
    return ["sandbox", "exec", "--name", mesh.name, place, "--", *command]


@contextmanager
def broken(mesh: Mesh, fault: AbstractContextManager[None], *, size: int = 100) -> Iterator[None]:
    """Have a fault for a while. Pods get through to each other before it and after it only."""
    wait_until_green(mesh)
    assert reaches(mesh, size=size)
    with fault:
        eventually("traffic fails", lambda: not reaches(mesh, size=size))
        yield
        assert not reaches(mesh, size=size)
    wait_until_green(mesh)
    assert reaches(mesh, size=size)


@contextmanager
def drops(mesh: Mesh, place: str, hook: str, rule: str) -> Iterator[None]:
    """Have a rule in a table of nft of its own, before all others."""
    kind, _, where = hook.partition(" priority ")
    chain = f"type {kind} priority {where or -300};"
    table = f"add table inet fault; add chain inet fault fault {{ {chain} }}"
    mesh.run(place, "nft", f"{table}; add rule inet fault fault {rule}")
    try:
        yield
    finally:
        mesh.run(place, "nft", "delete table inet fault")


@contextmanager
def rule(mesh: Mesh, place: str, what: str) -> Iterator[None]:
    """Have a routing rule."""
    mesh.run(place, "ip", "rule", "add", *what.split())
    try:
        yield
    finally:
        mesh.run(place, "ip", "rule", "del", *what.split())


@contextmanager
def on_the_wire(mesh: Mesh, place: str, broken: str, whole: str) -> Iterator[None]:
    """Have the link of a node be otherwise, on the side that is not the node's."""
    underlay = partial(run_inside, mesh.world.sandbox.namespace(None))
    port = mesh.node(place).port
    underlay(lambda: sh(f"ip link set {port} {broken}"))
    try:
        yield
    finally:
        underlay(lambda: sh(f"ip link set {port} {whole}"))


@contextmanager
def second_link(mesh: Mesh) -> Iterator[None]:
    """Have a node receive from the other one by a second link, and be strict about that."""
    sandbox = mesh.world.sandbox
    underlay = partial(run_inside, sandbox.namespace(None))
    here = mesh.node(HERE)
    underlay(lambda: sh("ip link add second type veth peer name eth1"))
    try:
        underlay(lambda: sh(f"ip link set eth1 netns {sandbox.namespace(here)}"))
        underlay(lambda: sh("ip link set second master bridge up"))
        mesh.run(HERE, "ip", "link", "set", "eth1", "up")
        mesh.run(HERE, "sysctl", "-qw", "net.ipv4.conf.eth1.rp_filter=1")
        (link,) = json.loads(mesh.run(HERE, "ip", "-j", "link", "show", "eth1"))
        neighbour = ("neigh", "replace", str(here.addresses.v4), "lladdr", link["address"])
        mesh.run(THERE, "ip", *neighbour, "dev", "eth0", "nud", "permanent")
        yield
    finally:
        underlay(lambda: sh("ip link del second"))
        mesh.run(THERE, "ip", "neigh", "del", str(here.addresses.v4), "dev", "eth0")


@contextmanager
def rewritten(file: Path, old: str, new: str) -> Iterator[None]:
    """Have a file say something else."""
    text = file.read_text()
    assert old in text
    replace_file(file, text.replace(old, new).encode())
    try:
        yield
    finally:
        replace_file(file, text.encode())


@contextmanager
def another_key(mesh: Mesh, place: str, publisher: str) -> Iterator[None]:
    """Have a node use a new key that its cluster does not publish."""
    mesh.stop(publisher, place)
    (file,) = mesh.world.sandbox.state(mesh.node(place)).rglob("wireguard.keys")
    file.unlink()
    for part in mesh.parts(place):
        part.start()
    try:
        yield
    finally:
        mesh.start(publisher)
