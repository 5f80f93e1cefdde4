"""
Between clusters that encrypt no packet is in plain text: whatever devices and routes come and go,
while encryption is being switched on, and after a cluster has left.

What `test_encryption.py` does to agents and keys is done to the network here.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec
import pytest

from clustermesh.sandbox.daemons import World

from .capture import Capture
from .conftest import NewMesh
from .mesh import Mesh, eventually

HERE: Final = "cluster1/node1"
THERE: Final = "cluster2/node1"
CLIENT: Final = f"{HERE}/pod1"
ASTRAY: Final = "77"  # the table of a stranger, whose rule is looked at before ours


@pytest.fixture(scope="module")
def mesh(new_mesh: NewMesh) -> Mesh:
    return new_mesh("strict", "--nodes=1", "--pods=1", "--encryption=wireguard")


def test_a_device_of_which_nothing_is_left_leads_nowhere(mesh: Mesh) -> None:
    """Not to wherever the node's other routes lead: also while its agent is dead."""
    mesh.stop(HERE, kill=True)
    here(mesh, "ip link delete cm_wg00")
    ping = (CLIENT, "ping", "-n", "-c5", "-i0.05", "-W1")
    there = mesh.node(THERE)
    with default_route(mesh, "eth0", "main"), Capture(mesh) as capture:
        for address in there.pods[0].addresses:
            assert "nreachable" in mesh.attempt(*ping, str(address)).stdout
        for address in there.addresses:  # of which no more errors may be told at once
            assert " 0 received" in mesh.attempt(*ping, str(address)).stdout
    assert capture.plain == []
    mesh.start(HERE)
    is_reached(mesh)


def test_another_way_off_the_node_is_guarded_as_it_appears(mesh: Mesh) -> None:
    """Be its default route in a table of its own, and a rule lead there before ours does."""
    up = underlay(mesh)
    with Capture(mesh) as capture, pinging(mesh):
        here(mesh, f"ip link add eth1 type veth peer name up1 netns {up}")
        inside(mesh, "ip link set up1 master bridge up")
        here(mesh, "ip link set eth1 up")
        here(mesh, "ip address add 172.30.200.1/16 dev eth1")
        here(mesh, "ip address add fd00:30::200/64 dev eth1 nodad")
        with led_astray(mesh, "eth1"):
            is_dropped(mesh)
    assert capture.plain == []
    here(mesh, "ip link delete eth1")
    is_reached(mesh)


def test_an_underlay_that_is_made_anew_is_guarded_as_it_appears(mesh: Mesh) -> None:
    node, up = mesh.node(HERE), underlay(mesh)
    with Capture(mesh) as capture, pinging(mesh):
        inside(mesh, f"ip link delete {node.port}")
        here(mesh, f"ip link add eth0 type veth peer name {node.port} netns {up}")
        inside(mesh, f"ip link set {node.port} master bridge up")
        here(mesh, "ip link set eth0 up")
        here(mesh, f"ip address add {node.addresses.v4}/16 dev eth0")
        here(mesh, f"ip address add {node.addresses.v6}/64 dev eth0 nodad")
        with led_astray(mesh, "eth0"):
            is_dropped(mesh)
    assert capture.plain == []
    mesh.wait_until_well()
    is_reached(mesh)


def test_an_agent_waits_for_its_underlay(mesh: Mesh) -> None:
    """And says so: it does not end, and nothing passes meanwhile."""
    node = mesh.node(HERE)
    mesh.stop(HERE)
    here(mesh, f"ip address delete {node.addresses.v4}/16 dev eth0")
    here(mesh, "ip address add 172.30.200.1/16 dev eth0")  # or its etcd would be what is missing
    here(mesh, f"ip address delete {node.addresses.v6}/64 dev eth0")
    (agent,) = mesh.parts(HERE)
    agent.start()
    eventually(
        "it says what it waits for",
        lambda: any(
            "no network device of this node has 172.30.1.1" in reason
            for said in agent.report().statuses()
            for reason in said.reasons
        ),
    )
    here(mesh, "ip address delete 172.30.200.1/16 dev eth0")
    here(mesh, f"ip address add {node.addresses.v4}/16 dev eth0")
    here(mesh, f"ip address add {node.addresses.v6}/64 dev eth0 nodad")
    mesh.wait_until_well()
    is_reached(mesh)


def test_a_cluster_that_has_left_is_sent_nothing_in_plain_text(mesh: Mesh) -> None:
    """Whoever has a connection open to one of its pods goes on sending."""
    first, second = mesh.world.sandbox.members
    with default_route(mesh, "eth0", "main"), Capture(mesh) as capture:
        with pinging(mesh):
            mesh.world.disconnect(first, second)
            mesh.world.wait_until_forgotten(first, second)
            eventually("its routes have gone", lambda: not mesh.table(HERE, "routes"))
            for address in mesh.node(THERE).pods[0].addresses:
                said = mesh.attempt(CLIENT, "ping", "-n", "-c5", "-i0.05", "-W1", str(address))
                assert " 0 received" in said.stdout
        mesh.stop(HERE, kill=True)
        mesh.world.connect(first, second)
        mesh.start(HERE)
        is_reached(mesh)
    assert capture.plain == []


@pytest.mark.parametrize(
    "flags",
    [("--routing=tunnel",), ("--routing=direct", "--agent=fast-path=on")],
    ids=["tunnel", "direct, on the fast path"],
)
def test_encryption_is_switched_on(new_mesh: NewMesh, flags: tuple[str, ...]) -> None:
    """What went in plain text is lost as soon as the agent has started, and until it encrypts."""
    plain = new_mesh(f"on-{flags[0][-6:]}", "--nodes=1", "--pods=1", *flags)
    is_reached(plain)
    sandbox = plain.world.sandbox
    mesh = Mesh(World(msgspec.structs.replace(sandbox, encryption="wireguard", agent=())))
    plain.stop(HERE, THERE)
    # Its own etcd is away: so far, and no farther, does an agent get that has to start anew.
    plain.stop("cluster1/etcd", kill=True)
    (agent,) = mesh.parts(HERE)
    agent.start()
    eventually("nothing is left of the plain ways", lambda: not plain_ways(mesh, HERE))
    with default_route(mesh, "eth0", "main"), Capture(mesh) as capture:
        with pinging(mesh):
            for address in mesh.node(THERE).pods[0].addresses:
                said = mesh.attempt(CLIENT, "ping", "-n", "-c5", "-i0.05", "-W1", str(address))
                assert " 0 received" in said.stdout
            mesh.start("cluster1/etcd", THERE)
        is_reached(mesh)
    assert (capture.plain, capture.seen["vxlan"]) == ([], 0)


def is_reached(mesh: Mesh) -> None:
    """Wait until pods reach each other again, both ways."""
    for client, server in ((HERE, THERE), (THERE, HERE)):
        pod = mesh.node(server).pods[0]
        for address in pod.addresses:

            def answers(place: str = f"{client}/pod1", to: object = address) -> bool:
                return bool(mesh.call(place, "tcp", to, 8080, "--timeout=1").get("pods"))

            eventually(f"{pod.place} answers", answers, timeout=60)


def plain_ways(mesh: Mesh, place: str) -> list[str]:
    """Devices and routes of ours that lead somewhere without encrypting, and programs."""
    links = mesh.world.sandbox.bpffs(mesh.node(place)) / "clustermesh/links"
    routes = [
        line
        for family in ("-4", "-6")
        for line in mesh.run(place, "ip", family, "route", "show", "table", "1995").splitlines()
    ]
    return [
        *(line for line in routes if "unreachable" not in line and "cm_wg" not in line),
        *(line for line in mesh.run(place, "ip", "link").splitlines() if "cm_vxlan" in line),
        *(pin.name for pin in links.glob("*_ingress-*")),
    ]


def dropped(mesh: Mesh) -> int:
    found = {row["reason"]: row["packets"] for row in mesh.maps(HERE)["drops"]}
    return int(found["PLAIN_TEXT"])


def is_dropped(mesh: Mesh) -> None:
    """Wait until the guard has dropped packets: they do leave this way, but for it."""
    before = dropped(mesh)
    eventually("packets are dropped", lambda: dropped(mesh) > before + 20)


@contextmanager
def pinging(mesh: Mesh) -> Iterator[None]:
    """Have the pod send to the other cluster's, in both families, whether it is answered or not."""
    four, six = mesh.node(THERE).pods[0].addresses
    with (
        mesh.running(CLIENT, "ping", "-n", "-q", "-i0.01", str(four)),
        mesh.running(CLIENT, "ping", "-n", "-q", "-i0.01", str(six)),
    ):
        yield


@contextmanager
def default_route(mesh: Mesh, device: str, table: str) -> Iterator[None]:
    """The most that anybody could do to lead packets astray: to the node that they are for."""
    there = mesh.node(THERE).addresses
    for ip in there:
        here(mesh, f"ip -{ip.version} route add default via {ip} dev {device} table {table}")
    yield
    for ip in there:
        here(mesh, f"ip -{ip.version} route del default dev {device} table {table}")


@contextmanager
def led_astray(mesh: Mesh, device: str) -> Iterator[None]:
    """The same, by a rule that is looked at before ours."""
    rule = f"iif pod1 priority 100 lookup {ASTRAY}"
    with default_route(mesh, device, ASTRAY):
        for version in (4, 6):
            here(mesh, f"ip -{version} rule add {rule}")
        yield
        for version in (4, 6):
            here(mesh, f"ip -{version} rule del {rule}")


def here(mesh: Mesh, command: str) -> None:
    """Run a command on the node."""
    mesh.run(HERE, *command.split())


def underlay(mesh: Mesh) -> str:
    """The network namespace of the bridge that all nodes are on."""
    return str(mesh.world.sandbox.namespace(None))


def inside(mesh: Mesh, command: str) -> None:
    """Run a command there."""
    subprocess.run(["nsenter", f"--net={underlay(mesh)}", *command.split()], check=True)
