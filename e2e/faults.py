"""Things that go wrong on nodes and between them, for as long as a `with` lasts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from agent.tests.netns import sh
from clustermesh.files import replace_file
from clustermesh.model import IPNetwork
from clustermesh.sandbox.model import ROUTER
from clustermesh.sandbox.namespace import run_inside

from .mesh import Mesh

Place: TypeAlias = str | None
"""A node; or the network between all of them, with its router."""

NETWORK: Final = None


@contextmanager
def nft_rules(mesh: Mesh, place: Place, hook: str, *rules: str) -> Iterator[None]:
    """
    Have rules in a table of nft of its own.

    Args:
        hook: `filter hook input`, which is before all others, or with `priority` and a number.
    """
    kind, _, priority = hook.partition(" priority ")
    chain = f"{{ type {kind} priority {priority or -300}; }}"
    _run(mesh, place, "nft add table inet fault")
    try:
        _run(mesh, place, f"nft add chain inet fault fault {chain}")
        for rule in rules:
            _run(mesh, place, f"nft add rule inet fault fault {rule}")
        yield
    finally:
        _run(mesh, place, "nft delete table inet fault")


@contextmanager
def routing_rules(mesh: Mesh, place: Place, action: str, *networks: IPNetwork) -> Iterator[None]:
    """
    Have routing rules that come before ours: what is done with all that goes to networks.

    Args:
        action: `unreachable`, `lookup main`; or `lookup 77`, where all is on eth0's segment.
    """
    rules = [f"-{to.version} rule {{}} to {to} priority 100 {action}" for to in networks]
    routes = [f"-{version} route {{}} default dev eth0 table 77" for version in (4, 6)]
    for line in (*routes, *rules):
        _run(mesh, place, f"ip {line.format('add')}")
    try:
        yield
    finally:
        for line in (*routes, *rules):
            _run(mesh, place, f"ip {line.format('del')}")


@contextmanager
def unrouted(mesh: Mesh, *networks: IPNetwork) -> Iterator[None]:
    """Have the router between the nodes not know the way to some networks."""
    commands = [f"ip -{network.version} route" for network in networks]
    routes = [
        _run(mesh, NETWORK, f"{command} show {network}")
        for command, network in zip(commands, networks, strict=True)
    ]
    for command, route in zip(commands, routes, strict=True):
        _run(mesh, NETWORK, f"{command} del {route}")
    try:
        yield
    finally:
        for command, route in zip(commands, routes, strict=True):
            _run(mesh, NETWORK, f"{command} add {route}")


@contextmanager
def on_the_wire(mesh: Mesh, place: Place, broken: str, whole: str) -> Iterator[None]:
    """Have the link of a node be otherwise, on the side that is not the node's."""
    assert place
    port = mesh.node(place).port
    for program in ("iptables", "ip6tables"):  # a switch neither fragments nor answers
        _run(mesh, NETWORK, f"sysctl -qew net.bridge.bridge-nf-call-{program}=0")
    _run(mesh, NETWORK, f"ip link set {port} {broken}")
    try:
        yield
    finally:
        _run(mesh, NETWORK, f"ip link set {port} {whole}")


@contextmanager
def second_link(mesh: Mesh, place: Place, *senders: Place) -> Iterator[None]:
    """
    Have a node receive what comes from some by a second link, and be strict about that.

    It knows those for good: their answers to its neighbour discovery come by the second link too,
    where it is not the one that has asked.
    """
    assert place
    sandbox, node = mesh.world.sandbox, mesh.node(place)
    port = f"{node.port}second"
    _run(mesh, NETWORK, f"ip link add {port} type veth peer name eth1")
    learned: list[tuple[Place, str]] = []
    try:
        _run(mesh, NETWORK, f"ip link set eth1 netns {sandbox.namespace(node)}")
        _run(mesh, NETWORK, f"ip link set {port} master bridge up")
        _run(mesh, place, "ip link set eth1 up")
        _run(mesh, place, "sysctl -qw net.ipv4.conf.eth1.rp_filter=1")
        for sender in senders:
            device = "eth0" if sender else "bridge"
            addresses = mesh.node(sender).addresses if sender else ROUTER
            for theirs, ours in zip(addresses, node.addresses, strict=True):
                for knower, neighbour, mac in (
                    (sender, f"{ours} dev {device}", _mac(mesh, place, "eth1")),
                    (place, f"{theirs} dev eth0", _mac(mesh, sender, device)),
                ):
                    way = f"lladdr {mac} nud permanent"
                    _run(mesh, knower, f"ip neigh replace {neighbour} {way}")
                    learned.append((knower, neighbour))
        yield
    finally:
        for sender, neighbour in learned:
            _run(mesh, sender, f"ip neigh del {neighbour}")
        _run(mesh, NETWORK, f"ip link del {port}")


def _mac(mesh: Mesh, place: Place, device: str) -> str:
    (link,) = json.loads(_run(mesh, place, f"ip -j link show {device}"))
    return str(link["address"])


@contextmanager
def rewritten(file: Path, changes: Mapping[str, str]) -> Iterator[None]:
    """Have a file say something else."""
    text = changed = file.read_text()
    for old, new in changes.items():
        assert old in text
        changed = changed.replace(old, new)
    replace_file(file, changed.encode())
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


@contextmanager
def no_agent(mesh: Mesh, place: str) -> Iterator[None]:
    """Have an agent be dead."""
    mesh.stop(place, kill=True)
    try:
        yield
    finally:
        mesh.start(place)


def _run(mesh: Mesh, place: Place, command: str) -> str:
    found = mesh.node(place) if place else None
    return run_inside(mesh.world.sandbox.namespace(found), partial(sh, command))
