"""A peer says what it likes; only what is its own counts, and what does not is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from .conftest import NewMesh
from .mesh import Mesh, eventually, service
from .watches import Calls, KernelWatch

CLIENT = "cluster1/node1/pod1"
STATE = "cilium/state"


@pytest.fixture(scope="module")
def mesh(new_mesh: NewMesh) -> Mesh:
    made = new_mesh("trust", "--clusters=3", "--nodes=1")
    for cluster in ("cluster1", "cluster2", "cluster3"):
        made.apply(cluster, service("echo"))
    made.wait_for_backends("echo", cluster1=2, cluster2=2, cluster3=2)
    return made


@pytest.fixture
def lawless(mesh: Mesh) -> Iterator[Mesh]:
    """A cluster2 whose etcd nobody keeps: what is written there stays."""
    mesh.stop("cluster2/apiserver")
    yield mesh
    mesh.start("cluster2/apiserver")
    mesh.wait_for_backends("echo", cluster1=2, cluster2=2, cluster3=2)


@pytest.mark.parametrize("value", [b'{"id": 77}', b"garbage", None], ids=["id", "garbage", "gone"])
def test_a_cluster_config_that_is_tampered_with_is_put_back(
    mesh: Mesh, value: bytes | None
) -> None:
    key = b"cilium/cluster-config/cluster2"
    before = _get(mesh, "cluster2", key)
    with KernelWatch(mesh) as watch:
        _put(mesh, "cluster2", key, value)
        eventually("it is put back", lambda: _get(mesh, "cluster2", key) == before)
        mesh.wait_until_well()
    assert watch.withdrawn() == {}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("services", {"clusterID": 3}),
        ("services", {"cluster": "cluster1"}),
        ("services", {"backends": {"10.2.1.300": {}}}),
        ("services", {"name": "echo"}),
        ("nodes", {"ClusterID": 1}),
        ("nodes", {"Cluster": "cluster3"}),
        ("nodes", {"IPAddresses": [{"Type": "InternalIP", "IP": "127.0.0.1"}]}),
        ("nodes", {"IPv4AllocCIDR": {"IP": "0.0.0.0", "Mask": "AAAAAA=="}}),
    ],
)
def test_a_row_that_is_not_the_peers_is_skipped_counted_and_named(
    lawless: Mesh, kind: str, change: dict[str, Any]
) -> None:
    """The row is written beside the good ones, and is as they are but for one thing."""
    mesh = lawless
    prefix, name, field = {
        "services": (f"{STATE}/services/v1/cluster2/default/", "echo", "name"),
        "nodes": (f"{STATE}/nodes/v1/cluster2/", "node1", "Name"),
    }[kind]
    good = json.loads(_get(mesh, "cluster2", f"{prefix}{name}".encode()))
    bad = json.dumps({**good, field: "bad", **change})
    with _traffic(mesh):
        _put(mesh, "cluster2", f"{prefix}bad".encode(), bad.encode())
        _expect_bad_row(mesh, kind, f"{prefix}bad")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("identities", "id/65537", b"k8s:io.cilium.k8s.policy.cluster=cluster2;"),
        ("identities", "id/131999", b"k8s:io.cilium.k8s.policy.cluster=cluster1;"),
        ("identities", "id/none", b"k8s:io.cilium.k8s.policy.cluster=cluster2;"),
        ("ip", "default/10.2.1.99", b'{"IP": "10.2.1.99", "HostIP": "172.30.2.1", "ID": 65537}'),
        ("ip", "default/10.2.1.99", b'{"IP": "10.2.1.98", "HostIP": "172.30.2.1", "ID": 131073}'),
        ("ip", "default/10.2.1.99", b"\xff\x00 garbage"),
    ],
)
def test_an_identity_or_address_that_is_not_the_peers_is_named_too(
    lawless: Mesh, kind: str, key: str, value: bytes
) -> None:
    mesh = lawless
    with _traffic(mesh):
        bad_key = f"{STATE}/{kind}/v1/{key}"
        _put(mesh, "cluster2", bad_key.encode(), value)
        _expect_bad_row(mesh, "endpoints" if kind == "ip" else kind, bad_key)


def test_a_peer_cannot_have_our_pods_addresses(lawless: Mesh) -> None:
    """Rows that are well formed, for an address that is ours: they count for nothing."""
    mesh = lawless
    ours = mesh.world.sandbox.cluster("cluster1").nodes[0].pods[1].addresses.v4
    before = _ipcache(mesh, "cluster1/node1")[f"{ours}/32"]
    row = {"IP": str(ours), "HostIP": "172.30.2.1", "ID": 131073, "Key": 0}
    with _traffic(mesh):
        _put(mesh, "cluster2", f"{STATE}/ip/v1/default/{ours}".encode(), json.dumps(row).encode())
        _service_with_backend(mesh, "echo", str(ours))
        for place in ("cluster1/node1", "cluster3/node1"):
            eventually("the row is there", lambda: _claim(mesh, place, ours))  # noqa: B023
            entry = _ipcache(mesh, place)[f"{ours}/32"]
            assert entry["cluster_id"] == 1
        assert _ipcache(mesh, "cluster1/node1")[f"{ours}/32"] == before
        rows = mesh.frontends("cluster3/node1", "echo")[0]["backends"]
        assert f"{ours}:8080/TCP" in {b["address"] for b in rows}
        assert {b["cluster"] for b in rows if str(ours) in b["address"]} == {"cluster1"}


def test_pod_cidrs_that_overlap_are_refused_and_shown(mesh: Mesh) -> None:
    thief = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "thief"},
        "spec": {"podCIDRs": ["10.1.1.0/25", "10.2.9.0/24", "172.30.1.128/25"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.30.2.9"}]},
    }
    # Only cluster2 is cut off, by itself: to its own nodes the claims of its manifests come first.
    other = mesh.world.sandbox.cluster("cluster3").nodes[0].pods[0].addresses.v4
    with Calls(mesh, CLIENT, "tcp", other, 8080, every=0.01) as calls:
        mesh.apply("cluster2", thief)
        try:
            for place in ("cluster1/node1", "cluster3/node1"):
                eventually("what is refused", partial(_is_refused, mesh, place))
            said = mesh.warnings("cluster1/node1") + mesh.troubles("cluster1/node1")
            assert "10.1.1.0/25" in said, "status must name it too"
        finally:
            mesh.delete("cluster2", thief)
    assert calls.report["errors"] == {}
    mesh.wait_until_well()


def _is_refused(mesh: Mesh, place: str) -> bool:
    refused = {row["cidr"]: row["refused"] for row in _cidrs(mesh, place, "thief")}
    assert refused.get("10.1.1.0/25") == "overlaps 10.1.1.0/24 of cluster1/node1"
    assert refused.get("10.2.9.0/24") == ""
    # The underlay, with cluster1's etcd on it: nobody is cut off from anything.
    assert refused.get("172.30.1.128/25") == "overlaps 172.30.0.0/16, the network of eth0"
    shown = mesh.run(place, "clustermesh", "show", "cidrs")
    assert "overlaps 10.1.1.0/24 of cluster1/node1" in shown
    routes = {r["prefix"] for r in mesh.table(place, "routes")}
    assert "10.2.9.0/24" in routes
    assert "10.1.1.0/25" not in routes
    return True


def test_a_cluster_id_that_is_taken_is_refused_and_status_says_why(mesh: Mesh) -> None:
    """cluster3 is set up once more, by somebody who gave it cluster2's id."""
    world = mesh.world
    cluster = world.sandbox.cluster("cluster3")
    (part,) = mesh.parts("cluster3/apiserver")
    mesh.stop("cluster3/apiserver", "cluster3/etcd")
    (world.sandbox.directory / "cluster3" / "manifests" / ".identities.json").unlink()
    shutil.rmtree(world.sandbox.home(cluster.control) / "etcd")
    for etcd in mesh.parts("cluster3/etcd"):
        etcd.start()
    command = [arg.replace("--cluster-id=3", "--cluster-id=2") for arg in world.command(part)]
    with mesh.running(cluster.control.place, *command):
        said = eventually(
            "it is refused",
            lambda: [t for t in mesh.troubles("cluster1/node1").splitlines() if "is refused" in t],
            timeout=40,
        )
        assert "cluster3 is refused" in said[0]
        assert "its cluster id 2 is that of cluster2" in said[0]
        address, _ = mesh.cluster_ips("cluster1", "echo")
        assert "cluster2" in mesh.answers(CLIENT, "tcp", address, 80)
    (world.sandbox.directory / "cluster3" / "manifests" / ".identities.json").unlink()
    shutil.rmtree(world.sandbox.home(cluster.control) / "etcd")
    mesh.stop("cluster3/etcd")
    mesh.start("cluster3")
    mesh.wait_for_backends("echo", cluster1=2, cluster2=2, cluster3=2)


def test_a_peer_may_read_what_is_shared_and_nothing_else(mesh: Mesh) -> None:
    """The certificate that cluster1 reads cluster2 with opens nothing more."""
    store = mesh.world.sandbox.directory / "cluster2" / "certs"
    user = [f"--cacert={store}/ca.crt", f"--cert={store}/remote-cluster1.crt"]
    etcdctl = ["env", "ETCDCTL_API=3", "etcdctl", *user, f"--key={store}/remote-cluster1.key"]
    etcdctl.append("--endpoints=https://172.30.2.254:2379")

    said = mesh.run("cluster1/node1", *etcdctl, "get", "--prefix", "cilium/state/", "--keys-only")
    assert "cilium/state/services/v1/cluster2/default/echo" in said
    for denied in (
        ("get", "--prefix", "clustermesh/local/"),
        ("get", "--prefix", "cilium/"),
        ("put", "cilium/state/nodes/v1/cluster2/x", "x"),
        ("user", "list"),
    ):
        with pytest.raises(AssertionError, match="permission denied"):
            mesh.run("cluster1/node1", *etcdctl, *denied)


def _expect_bad_row(mesh: Mesh, kind: str, key: str) -> None:
    for place in ("cluster1/node1", "cluster3/node1"):
        failures = eventually(
            "the bad row is named",
            lambda: [f for f in mesh.reply(place, kind)["failures"] if f["key"] == key],  # noqa: B023
        )
        assert failures[0]["origin"] == "cluster2"
        assert failures[0]["error"]
        assert key in mesh.run(place, "clustermesh", "show", kind)
        assert "cluster2: skipped" in mesh.warnings(place)
        remote = next(r for r in mesh.status(place)["remotes"] if r["cluster"] == "cluster2")
        assert remote["state"] == "ready"
        assert remote["bad_rows"] > 0
    address, _ = mesh.cluster_ips("cluster1", "echo")
    assert "cluster2" in mesh.answers(CLIENT, "tcp", address, 80)


@contextmanager
def _traffic(mesh: Mesh) -> Iterator[None]:
    """See that all calls from cluster1 are answered, as long as it lasts."""
    address, _ = mesh.cluster_ips("cluster1", "echo")
    with Calls(mesh, CLIENT, "tcp", address, 80, every=0.01) as calls:
        yield
    assert calls.report["errors"] == {}


def _service_with_backend(mesh: Mesh, name: str, ip: str) -> None:
    key = f"{STATE}/services/v1/cluster2/default/{name}".encode()
    row = json.loads(_get(mesh, "cluster2", key))
    row["backends"][ip] = next(iter(row["backends"].values()))
    _put(mesh, "cluster2", key, json.dumps(row).encode())


def _claim(mesh: Mesh, node: str, ip: object) -> bool:
    """Whether a node knows that both clusters say they have an address."""
    rows = [row for row in mesh.table(node, "endpoints") if row["address"] == str(ip)]
    return {row["cluster"] for row in rows} == {"cluster1", "cluster2"}


def _cidrs(mesh: Mesh, node: str, of: str) -> list[dict[str, Any]]:
    """The claims of another node, as a node sees them."""
    return [row for row in mesh.table(node, "cidrs") if row["node"] == of]


def _ipcache(mesh: Mesh, node: str) -> dict[str, dict[str, Any]]:
    return {row["prefix"]: row for row in mesh.maps(node)["ipcache"]}


def _get(mesh: Mesh, cluster: str, key: bytes) -> bytes:
    return mesh.etcdctl(cluster, "get", key.decode(), "--print-value-only").removesuffix(b"\n")


def _put(mesh: Mesh, cluster: str, key: bytes, value: bytes | None) -> None:
    if value is None:
        mesh.etcdctl(cluster, "del", key.decode())
    else:
        mesh.etcdctl(cluster, "put", key.decode(), value=value)
