"""
Between clusters everything is encrypted, always: while agents start, are dead, and change keys.

Where the kernel has no WireGuard this is wireguard-go; what is promised is the same.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.kernel.netlink import Netlink
from agent.kernel.wireguard.driver import Driver
from agent.kernel.wireguard.kernel import KernelWireGuard
from agent.kernel.wireguard.userspace import Userspace
from clustermesh.sandbox.namespace import run_inside

from .capture import Capture
from .conftest import NewMesh
from .mesh import Mesh, cli, eventually, service
from .watches import Calls, Ping

CLIENT = "cluster1/node1/pod1"


@pytest.fixture(scope="module")
def mesh(new_mesh: NewMesh) -> Mesh:
    made = new_mesh("encrypted", "--pods=1", "--encryption=wireguard")
    for cluster in ("cluster1", "cluster2"):
        made.apply(cluster, service("echo", affinity="remote"))
    made.wait_for_backends("echo", "cluster1/node1", cluster2=2)
    return made


@contextmanager
def nothing_is_lost_or_seen(mesh: Mesh) -> Iterator[None]:
    """Traffic between the clusters, all of which arrives, and none of which can be read."""
    server = mesh.world.sandbox.cluster("cluster2").nodes[0].pods[0]
    v4, _ = mesh.cluster_ips("cluster1", "echo")
    with (
        Capture(mesh) as capture,
        Ping(mesh, CLIENT, server.addresses.v4) as ping,
        Ping(mesh, CLIENT, server.addresses.v6) as ping6,
        Calls(mesh, CLIENT, "stream", v4, 81, every=0.005) as stream,
    ):
        yield
    assert ping.lost() == []
    assert ping6.lost() == []
    assert (stream.report["broken"], stream.report["failed"]) == (None, 0), stream.report
    assert (capture.plain, capture.seen["vxlan"]) == ([], 0)
    assert capture.seen["wireguard"] > 200


@pytest.mark.vm
def test_every_pod_reaches_every_pod_of_the_other_cluster(mesh: Mesh) -> None:
    with Capture(mesh) as capture:
        for client, server in itertools.permutations(mesh.nodes, 2):
            if client.cluster != server.cluster:
                for v in (0, 1):
                    source, target = client.pods[0], server.pods[0]
                    for mode in ("tcp", "udp"):
                        report = mesh.call(source.place, mode, target.addresses[v], 8080)
                        assert report["pods"] == {target.place: 1}, report
                        assert set(report["clients"]) == {str(source.addresses[v])}
    assert (capture.plain, capture.seen["vxlan"]) == ([], 0)
    assert capture.seen["wireguard"] > 16


@pytest.mark.parametrize(("routing", "what"), [("direct", "plain"), ("tunnel", "vxlan")])
def test_the_capture_sees_what_is_not_encrypted(new_mesh: NewMesh, routing: str, what: str) -> None:
    """Without this, nothing above would say anything."""
    plain = new_mesh(f"plain-{routing}", "--nodes=1", "--pods=1", f"--routing={routing}")
    server = plain.world.sandbox.cluster("cluster2").nodes[0].pods[0]
    with Capture(plain) as capture:
        for address in server.addresses:
            plain.call(CLIENT, "tcp", address, 8080)
    assert capture.seen[what] > 8
    assert capture.seen["wireguard"] == 0


@pytest.mark.vm
@pytest.mark.parametrize("family", [4, 6])
def test_packets_of_any_size_arrive(mesh: Mesh, family: int) -> None:
    server = mesh.world.sandbox.cluster("cluster2").nodes[1].pods[0]
    address = str(server.addresses[family == 6])
    for size in (64, 1300, 1400, 1472, 3000):
        mesh.run(CLIENT, "ping", "-n", "-c3", "-i0.05", "-s", str(size), address)


def test_an_agent_that_is_killed_and_one_that_stays_away(mesh: Mesh) -> None:
    with nothing_is_lost_or_seen(mesh):
        for _ in range(3):
            for node in ("cluster1/node1", "cluster2/node1"):
                mesh.stop(node, kill=True)
                mesh.start(node)
    before = handshakes(mesh, "cluster1/node1")
    with nothing_is_lost_or_seen(mesh):
        mesh.stop("cluster1/node1", "cluster2/node1")
        mesh.answers(CLIENT, "tcp", mesh.cluster_ips("cluster1", "echo")[0], 80)
        mesh.start("cluster1/node1", "cluster2/node1")
    assert handshakes(mesh, "cluster1/node1").keys() == before.keys()


def test_without_its_devices_nothing_leaves_a_node(mesh: Mesh) -> None:
    """Not even while its agent is dead, nor when somebody takes our route table out of use."""
    server = mesh.world.sandbox.cluster("cluster2").nodes[0].pods[0]
    gateway = mesh.world.sandbox.cluster("cluster2").nodes[0].addresses.v4
    mesh.stop("cluster1/node1", kill=True)
    mesh.run("cluster1/node1", "ip", "link", "delete", "cm_wg00")
    # The most that anybody could do to lead it astray: a route of the node's own, and no rule.
    mesh.run("cluster1/node1", "ip", "route", "add", str(server.addresses.v4), "via", str(gateway))
    mesh.run("cluster1/node1", "ip", "rule", "delete", "priority", "195")
    with Capture(mesh) as capture:
        done = mesh.attempt(CLIENT, "ping", "-n", "-c5", "-i0.05", "-W1", str(server.addresses.v4))
        assert " 0 received" in done.stdout
    assert (capture.plain, capture.seen["vxlan"]) == ([], 0)
    dropped = {row["reason"]: row["packets"] for row in mesh.maps("cluster1/node1")["drops"]}
    assert dropped["PLAIN_TEXT"] >= 5
    mesh.run("cluster1/node1", "ip", "route", "delete", str(server.addresses.v4))
    mesh.start("cluster1/node1")
    assert mesh.call(CLIENT, "tcp", server.addresses.v4, 8080)["pods"] == {server.place: 1}
    assert "PLAIN_TEXT" in mesh.warnings("cluster1/node1")


@pytest.mark.parametrize("how", ["delete cm_wg00", "set cm_wg00 down", "set cm_wg00 mtu 1300"])
def test_a_device_that_somebody_removes_or_changes_is_put_right(mesh: Mesh, how: str) -> None:
    server = mesh.world.sandbox.cluster("cluster2").nodes[0].pods[0]
    look = ("cluster1/node1", "ip", "-o", "link", "show", "cm_wg00")
    mtu = r"UP.* mtu (\d+)"
    before = re.search(mtu, mesh.run(*look))
    assert before
    with Capture(mesh) as capture:
        mesh.run("cluster1/node1", "ip", "link", *how.split())
        eventually(
            "it is as before",
            lambda: (now := re.search(mtu, mesh.attempt(*look).stdout)) and now[1] == before[1],
        )
        eventually(
            "the pod answers",
            lambda: mesh.call(CLIENT, "tcp", server.addresses.v4, 8080, "--timeout=1")["pods"],
        )
    assert (capture.plain, capture.seen["vxlan"]) == ([], 0)


def test_a_peer_behind_a_nat_is_answered_where_it_comes_from(mesh: Mesh) -> None:
    """Also by an agent that starts later, and knows nothing but the address that it publishes."""
    behind, other = "cluster2/node1", "cluster1/node1"
    pod = mesh.world.sandbox.cluster("cluster1").nodes[0].pods[0]
    mesh.stop(behind)
    send_from(mesh, behind, 40000)

    def endpoint() -> str:
        (row,) = (r for r in mesh.table(other, "peers") if r["node"] == "node1")
        return str(row["endpoint"]).rpartition(":")[2]

    def is_learned(port: str) -> bool:
        report = mesh.call(f"{behind}/pod1", "tcp", pod.addresses.v4, 8080)
        assert report["pods"] == {pod.place: 1}
        return endpoint() == port

    eventually("its endpoint is learned", lambda: is_learned("40000"), timeout=40)
    mesh.stop(other)
    (agent,) = mesh.parts(other)
    agent.start()
    eventually("it is ready", lambda: any(said.ready for said in agent.report().statuses()))
    eventually("its endpoint is known again", lambda: endpoint() == "40000")
    assert mesh.call(f"{other}/pod1", "tcp", mesh.node(behind).pods[0].addresses.v4, 8080)["pods"]
    mesh.start(behind)
    eventually("it is where it was before", lambda: is_learned("51871"), timeout=40)


def test_what_comes_in_plain_text_is_dropped(mesh: Mesh) -> None:
    """A peer that does not encrypt, or somebody who forges its pods' addresses."""
    server = mesh.world.sandbox.cluster("cluster1").nodes[0]
    forger = "cluster2/control"
    mesh.run(forger, "ip", "address", "add", "10.2.1.99/32", "dev", "lo")
    target = str(server.pods[0].addresses.v4)
    mesh.run(forger, "ip", "route", "add", target, "via", str(server.addresses.v4))
    before = drops(mesh, "cluster1/node1")
    mesh.attempt(forger, "ping", "-n", "-c3", "-i0.05", "-W1", "-I", "10.2.1.99", target)
    assert drops(mesh, "cluster1/node1") >= before + 3
    mesh.run(forger, "ip", "route", "delete", target)


def test_a_rotation_loses_nothing(mesh: Mesh) -> None:
    node = "cluster1/node1"
    first = mesh.status(node)["encryption"]
    with nothing_is_lost_or_seen(mesh):
        rotate(mesh, node)
        eventually(
            "the traffic goes by the new key",
            lambda: {row["device"] for row in mesh.table(node, "routes")} == {"cm_wg10"},
        )
        eventually(
            "the old key has gone",
            lambda: mesh.status(node)["encryption"]["previous_key"] == "",
            timeout=60,
        )
        eventually("and its device", lambda: devices(mesh, node) == {"cm_wg10"})
        mesh.call(
            CLIENT,
            "tcp",
            mesh.world.sandbox.cluster("cluster2").nodes[1].pods[0].addresses.v4,
            8080,
        )
    assert mesh.status(node)["encryption"]["public_key"] != first["public_key"]
    mesh.wait_until_well()


def test_a_rotation_waits_until_others_can_know_of_it(mesh: Mesh) -> None:
    """Nobody passes the new key on, and nobody is cut off: not even by a new agent."""
    node = "cluster1/node1"
    first = mesh.status(node)["encryption"]
    mesh.stop("cluster1/apiserver")
    with nothing_is_lost_or_seen(mesh):
        rotate(mesh, node)
        waits = "its WireGuard key is being changed, and waits for our own etcd"
        eventually("it says for what it waits", lambda: waits in mesh.warnings(node))
        mesh.stop(node, kill=True)
        (agent,) = mesh.parts(node)
        agent.start()
        eventually("it says so again", lambda: waits in mesh.warnings(node), timeout=60)
        said = mesh.run(node, "clustermesh", "encryption", "status")
        assert f"{node} is changing its key, and waits for our own etcd to have" in said
        assert mesh.status(node)["encryption"]["previous_key"] == first["public_key"]
        mesh.start("cluster1/apiserver")
        eventually(
            "it goes on",
            lambda: mesh.status(node)["encryption"]["previous_key"] == "",
            timeout=90,
        )
    mesh.wait_until_well()


def test_both_ends_may_rotate_at_once_and_be_killed_meanwhile(mesh: Mesh) -> None:
    both = ("cluster1/node1", "cluster2/node1")
    before = {node: mesh.status(node)["encryption"]["public_key"] for node in both}
    with nothing_is_lost_or_seen(mesh):
        for node in both:
            rotate(mesh, node)
        for node in both:
            mesh.stop(node, kill=True)
            mesh.start(node)
        for node in both:
            eventually(
                f"{node} has moved",
                lambda: mesh.status(node)["encryption"]["previous_key"] == "",  # noqa: B023
                timeout=90,
            )
    for node in both:
        assert mesh.status(node)["encryption"]["public_key"] != before[node]


def test_a_private_key_is_told_to_nobody(mesh: Mesh) -> None:
    node = mesh.node("cluster1/node1")
    kept = mesh.world.sandbox.state(node) / "cluster1" / "node1" / "wireguard.keys"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    private = json.loads(kept.read_bytes())["current"]["private"]
    said = [
        json.dumps(mesh.status(node.place)),
        *(json.dumps(mesh.reply(node.place, name)) for name in ("peers", "nodes", "routes")),
        *(part.log.read_text() for part in mesh.world.parts()),
        *(f.read_text() for f in mesh.manifests_dir("cluster1").glob("*.json")),
    ]
    assert not any(private in text for text in said)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("", "we encrypt, and it has no WireGuard key"),
        ("AAAA", "has 3 bytes, not 32"),
        ("another's", "is that of cluster2/node1"),
        ("ours", "is our own"),
    ],
)
def test_a_peer_without_a_key_of_its_own_is_refused(mesh: Mesh, key: str, why: str) -> None:
    """Whatever it publishes, its pods are sent nothing, and the other nodes' notice nothing."""
    sandbox = mesh.world.sandbox
    bad, good = sandbox.cluster("cluster2").nodes[1], sandbox.cluster("cluster2").nodes[0]
    ours = mesh.status("cluster1/node1")["encryption"]["public_key"]
    theirs = mesh.status(good.place)["encryption"]["public_key"]
    mesh.stop(bad.place)
    with Capture(mesh) as capture, Ping(mesh, CLIENT, good.pods[0].addresses.v4) as others:
        with published(
            mesh, "cluster2", "node2", {"another's": theirs, "ours": ours}.get(key, key)
        ):
            eventually(
                "it is refused",
                lambda: (
                    why in mesh.troubles("cluster1/node1")
                    and not any(
                        row["node"] == "node2" for row in mesh.table("cluster1/node1", "routes")
                    )
                ),
            )
            target = str(bad.pods[0].addresses.v4)
            done = mesh.attempt(CLIENT, "ping", "-n", "-c3", "-i0.05", "-W1", target)
            assert " 0 received" in done.stdout
        mesh.start(bad.place)
        eventually("all is well again", lambda: is_well(mesh, "cluster1/node1"), timeout=60)
    assert (capture.plain, others.lost()) == ([], [])
    report = mesh.call(CLIENT, "tcp", bad.pods[0].addresses.v4, 8080)
    assert report["pods"] == {bad.pods[0].place: 1}


def test_an_endpoint_in_our_pod_network_is_refused_and_named(mesh: Mesh) -> None:
    """What is sent to it would be sent into our own pods."""
    stray = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "stray"},
        "spec": {"podCIDRs": ["10.2.9.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.1.1.77"}]},
    }
    published = {
        "apiVersion": "clustermesh.io/v1alpha1",
        "kind": "MeshNode",
        "metadata": {"name": "stray"},
        "spec": {"wireguardPublicKey": "A" * 42 + "E="},
    }
    why = "10.1.1.77/32 of cluster2/stray is refused: overlaps 10.1.1.0/24 of cluster1/node1"
    # To cluster2's own nodes the claims of its manifests come first: it cuts itself off.
    mesh.apply("cluster2", stray, published)
    try:
        eventually("it is named", lambda: why in mesh.troubles("cluster1/node1"))
        for table in ("peers", "routes"):
            assert not [
                row for row in mesh.table("cluster1/node1", table) if row["node"] == "stray"
            ]
    finally:
        mesh.delete("cluster2", stray, published)
    mesh.wait_until_well()
    server = mesh.world.sandbox.cluster("cluster2").nodes[0].pods[0]
    assert mesh.call(CLIENT, "tcp", server.addresses.v4, 8080)["pods"] == {server.place: 1}


def test_a_peer_that_encrypts_is_sent_nothing_where_we_do_not(new_mesh: NewMesh) -> None:
    plain = new_mesh("mismatch", "--nodes=1", "--pods=1")
    plain.stop("cluster2/node1")
    with published(plain, "cluster2", "node1", "A" * 42 + "E="):
        eventually(
            "it is refused",
            lambda: (
                "it encrypts, and we do not" in plain.troubles("cluster1/node1")
                and not plain.table("cluster1/node1", "routes")
            ),
        )


def test_nothing_is_left_when_it_is_taken_off_a_node(mesh: Mesh) -> None:
    place = "cluster2/node2"
    node = mesh.node(place)
    mesh.stop(place)
    done = mesh.run(
        place,
        "clustermesh",
        "cleanup",
        f"--bpffs={mesh.world.sandbox.bpffs(node)}",
        f"--state-dir={mesh.world.sandbox.state(node)}",
    )
    assert "nothing of clustermesh is left" in done
    assert devices(mesh, place) == set()
    assert not list(mesh.world.sandbox.sockets(node).glob("*"))
    mesh.start(place)


def send_from(mesh: Mesh, place: str, port: int) -> None:
    """Have what a node sends come from another port, as behind a NAT."""
    node = mesh.node(place)

    async def configure() -> None:
        async with Netlink.open() as netlink:
            by_driver: dict[str, Driver] = {
                "kernel": KernelWireGuard(netlink.ip),
                "wireguard-go": Userspace(mesh.world.sandbox.sockets(node)),
            }
            device = "cm_wg00"
            driver = by_driver[
                "wireguard-go" if await netlink.has_kind(device, "tun") else "kernel"
            ]
            found = await driver.read(device)
            await driver.configure(device, found.private_key, port)
            for each in by_driver.values():
                each.close()

    run_inside(mesh.world.sandbox.namespace(node), lambda: asyncio.run(configure()))


def rotate(mesh: Mesh, place: str) -> None:
    said = cli(
        "sandbox", "exec", "--name", mesh.name, place, "--", "clustermesh", "encryption", "rotate"
    )
    assert "has a new key" in said


def is_well(mesh: Mesh, node: str) -> bool:
    troubles = mesh.troubles(node)
    assert not troubles, troubles
    return True


def handshakes(mesh: Mesh, node: str) -> dict[str, Any]:
    return {row["public_key"]: row["handshake_age"] for row in mesh.table(node, "peers")}


def drops(mesh: Mesh, node: str) -> int:
    found = {row["reason"]: row["packets"] for row in mesh.maps(node)["drops"]}
    return int(found["PLAIN_TEXT"])


def devices(mesh: Mesh, node: str) -> set[str]:
    names = mesh.run(node, "ip", "-brief", "link").splitlines()
    return {name for line in names if (name := line.split()[0]).startswith("cm_wg")}


@contextmanager
def published(mesh: Mesh, cluster: str, node: str, key: str) -> Iterator[None]:
    """Have the MeshNode of a node whose agent is away say that this is its key."""
    file = mesh.manifests_dir(cluster) / f"meshnode-{node}.json"
    before = file.read_bytes()
    manifest = json.loads(before)
    manifest["spec"]["wireguardPublicKey"] = key
    _replace(file, json.dumps(manifest).encode())
    yield
    _replace(file, before)


def _replace(file: Path, content: bytes) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(file)
