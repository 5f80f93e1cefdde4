"""A sandbox's cluster as its apiserver reads it: written, and then read with the real reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from apiserver.manifests import parse
from apiserver.objects import EndpointSlice, Node, Pod, Service
from clustermesh.errors import UserError
from clustermesh.sandbox.manifests import Manifests, read_manifests
from clustermesh.sandbox.model import Pod as SandboxPod
from clustermesh.sandbox.model import sandbox

SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{{spec}ports: [{{name: web, port: 80, targetPort: http}}, {{name: raw, port: 9}}]}}
"""


class World:
    """The manifests of a cluster of two nodes with two pods each, of which some have stopped."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "manifests"
        self.file = directory / "applied.yaml"
        self.stopped: set[str] = set()
        (cluster,) = sandbox(clusters=1, nodes=2, pods=2).members
        self.manifests = Manifests(self.directory, cluster)
        self.manifests.create(self.is_running)

    def is_running(self, pod: SandboxPod) -> bool:
        return pod.place not in self.stopped

    def apply(self, *texts: str) -> list[str]:
        self.file.write_text("\n---\n".join(texts))
        return self.manifests.apply(self.file, self.is_running)

    def delete(self, *texts: str) -> list[str]:
        self.file.write_text("\n---\n".join(texts))
        return self.manifests.delete(self.file, self.is_running)

    @property
    def objects(self) -> list[object]:
        """All that the apiserver reads, without a single complaint."""
        found: list[object] = []
        for path in sorted(self.directory.rglob("*.yaml")):
            parsed = parse(path.read_bytes(), path.name)
            assert parsed.problems == ()
            found += parsed.objects
        return found

    @property
    def services(self) -> dict[str, list[str]]:
        """The ClusterIPs of each service."""
        services = [item for item in self.objects if isinstance(item, Service)]
        return {s.key.name: list(s.spec.cluster_ips) for s in services}

    @property
    def answering(self) -> list[str]:
        """Service, ready addresses and ports of each slice, as a person would print them."""
        return [
            " ".join(
                [
                    item.service.name,
                    *(a for e in item.endpoints or () if e.conditions.ready for a in e.addresses),
                    *(f"{port.name}={port.port}" for port in item.ports or ()),
                ]
            )
            for item in self.objects
            if isinstance(item, EndpointSlice) and item.service
        ]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def service(name: str = "echo", spec: str = "", namespace: str = "default") -> str:
    return SERVICE.format(name=name, spec=spec, namespace=namespace)


SELECTED = "selector: {app: echo, node: node1}, "


def test_a_cluster_has_its_nodes_and_pods(world: World) -> None:
    nodes = [item for item in world.objects if isinstance(item, Node)]
    assert [(n.key.name, n.spec.pod_cidrs) for n in nodes] == [
        ("node1", ("10.1.1.0/24", "fd00:10:1:1::/64")),
        ("node2", ("10.1.2.0/24", "fd00:10:1:2::/64")),
    ]
    assert [a.address for a in nodes[0].status.addresses] == ["172.30.1.1", "fd00:30::1:1"]
    pods = [item for item in world.objects if isinstance(item, Pod)]
    assert [(str(p.key), p.status.pod_ip, p.status.host_ip) for p in pods] == [
        ("default/node1-pod1", "10.1.1.11", "172.30.1.1"),
        ("default/node1-pod2", "10.1.1.12", "172.30.1.1"),
        ("default/node2-pod1", "10.1.2.11", "172.30.1.2"),
        ("default/node2-pod2", "10.1.2.12", "172.30.1.2"),
    ]


def test_a_service_gets_an_address_of_each_family_and_the_pods_it_selects(world: World) -> None:
    assert world.apply(service(spec=SELECTED)) == ["service/default/echo"]
    assert world.services == {"echo": ["10.101.0.1", "fd00:110:1::1"]}
    assert world.answering == [
        "echo 10.1.1.11 10.1.1.12 web=8080 raw=9",
        "echo fd00:10:1:1::11 fd00:10:1:1::12 web=8080 raw=9",
    ]


def test_every_service_has_addresses_of_its_own_and_keeps_them(world: World) -> None:
    world.apply(service("a"), service("b"))
    first = {"a": ["10.101.0.1", "fd00:110:1::1"], "b": ["10.101.0.2", "fd00:110:1::2"]}
    assert world.services == first
    world.apply(service("c"), service("b", SELECTED), service("a"))
    assert world.services == first | {"c": ["10.101.0.3", "fd00:110:1::3"]}
    assert world.delete(service("a"), service("nobody")) == ["service/default/a"]
    world.apply(service("d"))
    assert world.services["d"] == ["10.101.0.1", "fd00:110:1::1"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("clusterIP: None, ", []),
        ("clusterIP: 10.101.7.7, clusterIPs: [10.101.7.7], ", ["10.101.7.7"]),
        ("type: ExternalName, externalName: example.org, ", []),
    ],
)
def test_a_service_that_says_its_address_keeps_that(
    world: World, spec: str, expected: list[str]
) -> None:
    world.apply(service(spec=spec))
    assert world.services == {"echo": expected}


def test_a_pod_that_has_stopped_answers_nothing(world: World) -> None:
    world.apply(service(spec=SELECTED))
    world.stopped.add("cluster1/node1/pod1")
    world.manifests.update(world.is_running)
    assert world.answering[0] == "echo 10.1.1.12 web=8080 raw=9"
    world.stopped.clear()
    world.manifests.update(world.is_running)
    assert world.answering[0] == "echo 10.1.1.11 10.1.1.12 web=8080 raw=9"


def test_without_a_selector_nothing_answers_but_what_is_written_by_hand(world: World) -> None:
    by_hand = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: mine, namespace: default, labels: {kubernetes.io/service-name: echo}}
addressType: IPv4
endpoints: [{addresses: [10.1.1.99], conditions: {ready: true}}]
ports: [{name: web, port: 1}]
"""
    world.apply(service())
    assert world.answering == []
    world.apply(by_hand)
    assert world.answering == ["echo 10.1.1.99 web=1"]
    world.apply(service(spec=SELECTED))
    assert world.answering == ["echo 10.1.1.99 web=1"]


def test_a_selector_sees_the_labels_of_pods_and_their_namespace_only(world: World) -> None:
    world.apply(service("none", "selector: {app: other}, "), service("far", SELECTED, "shop"))
    assert world.answering == ["none web=8080 raw=9", "none web=8080 raw=9"]


def test_a_target_port_that_no_pod_has_a_name_for_answers_nothing(world: World) -> None:
    world.apply(service(spec=SELECTED).replace("targetPort: http", "targetPort: nowhere"))
    assert world.answering[0] == "echo 10.1.1.11 10.1.1.12 raw=9"


def test_a_service_without_a_spec_is_one(world: World) -> None:
    world.apply("apiVersion: v1\nkind: Service\nmetadata: {name: bare, namespace: default}")
    assert world.services == {"bare": ["10.101.0.1", "fd00:110:1::1"]}
    assert world.answering == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a: [", "no YAML"),
        (service("Echo"), "document 2 (Service Echo): metadata.name"),
        (service().replace("port: 9", "prot: 9"), "document 2 (Service echo): spec.ports.prot"),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: ../x}", "has no Deployment"),
    ],
)
def test_a_file_with_a_mistake_is_named_and_changes_nothing(
    world: World, text: str, named: str
) -> None:
    before = world.objects
    with pytest.raises(UserError) as refused:
        world.apply(service("good"), text)
    assert str(world.file) in str(refused.value)
    assert named in str(refused.value)
    assert world.objects == before


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read: No such file"):
        read_manifests(tmp_path / "nowhere.yaml")


def test_nothing_is_written_when_nothing_has_changed(world: World) -> None:
    world.apply(service(spec=SELECTED))

    def inodes() -> dict[str, int]:
        return {p.name: p.stat().st_ino for p in world.directory.rglob("*.yaml")}

    before = inodes()
    world.apply(service(spec=SELECTED))
    world.manifests.update(world.is_running)
    assert inodes() == before
