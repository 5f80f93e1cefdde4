"""Bad input: every mistake is named with its file, document and field, and the rest is used."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver.manifests import parse

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
"""
NODE = """
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {podCIDRs: [10.1.0.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {containers: [{name: a, ports: [{containerPort: 80, protocol: TCP}]}]}
status: {podIP: 10.1.0.7, hostIP: 192.0.2.1, podIPs: [{ip: 10.1.0.7}]}
"""
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop}
addressType: IPv4
endpoints: [{addresses: [10.1.0.7], conditions: {ready: true}}]
ports: [{name: http, port: 80, protocol: TCP}]
"""
MESH_NODE = """
apiVersion: clustermesh.io/v1alpha1
kind: MeshNode
metadata: {name: node1}
spec: {wireguardPublicKey: a2V5}
"""
NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}"
ALL = [SERVICE, NODE, POD, SLICE, MESH_NODE, NAMESPACE]


def mistakes(text: str) -> list[str]:
    return [f"{where}: {error}" for where, error in parse(text.encode(), "a.yaml").problems]


def names(text: str) -> list[str]:
    objects = parse(text.encode(), "a.yaml").objects
    return [f"{type(item).__name__} {item.key.name}" for item in objects]


def test_all_kinds_are_read_from_the_documents_of_a_file() -> None:
    text = "\n---\n".join(["# only a comment", *ALL, ""])
    assert mistakes(text) == []
    assert names(text) == [
        "Service web",
        "Node node1",
        "Pod web-0",
        "EndpointSlice web-1",
        "MeshNode node1",
        "Namespace shop",
    ]


def test_json_and_lists_are_read_too() -> None:
    item = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
    found = {"apiVersion": "v1", "kind": "List", "items": [item, item | {"kind": "ConfigMap"}]}
    assert names(json.dumps(found)) == ["Namespace shop"]
    assert names('{"apiVersion": "v1", "kind": "List", "items": []}') == []


def test_other_kinds_are_passed_over_whatever_is_in_them() -> None:
    text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: 5"
    assert (names(text), mistakes(text)) == ([], [])


def test_what_kubectl_prints_is_read() -> None:
    text = SERVICE.replace(
        "namespace: shop",
        "namespace: shop, uid: u, resourceVersion: '1', creationTimestamp: 2024-01-01T00:00:00Z, "
        "managedFields: [{manager: x}], labels: {since: 2024-01-01}",
    )
    assert (names(text), mistakes(text)) == (["Service web"], [])


@pytest.mark.parametrize(
    ("text", "old", "new", "named"),
    [
        (SERVICE, "name: web", "name: Web", "(Service Web): metadata.name: 'Web' is not a DNS"),
        (SERVICE, "name: web", "name: a.b", "(Service a.b): metadata.name: 'a.b' is not a DNS"),
        (SERVICE, "name: web", "name: " + "a" * 64, "is not a DNS label"),
        (SERVICE, "namespace: shop", "namespace: a_b", "metadata.namespace: 'a_b'"),
        (SERVICE, ", namespace: shop", "", "metadata.namespace is missing"),
        (SERVICE, "metadata:", "meta:", "meta is no field of a Service"),
        (SERVICE, "clusterIP:", "clusterip:", "spec.clusterip is no field of a Service"),
        (SERVICE, "name: http", "nam: http", "spec.ports.nam is no field of a Service"),
        (SERVICE, "namespace: shop", "namespace: shop, label: {}", "metadata.label is no field"),
        (SERVICE, "10.0.0.1", "10.0.0", "spec.clusterIPs: '10.0.0' is no IP address"),
        (SERVICE, "10.0.0.1", "127.0.0.1", "spec.clusterIPs: 127.0.0.1"),
        (SERVICE, "port: 80", "port: 0", "spec.ports: 0 is no port"),
        (SERVICE, "port: 80", "port: 65536", "spec.ports: 65536 is no port"),
        (SERVICE, "port: 80", "port: http", "Expected `int`, got `str` - at `$.spec.ports[0]"),
        (SERVICE, "port: 80", "targetPort: 80", "missing required field `port`"),
        (SERVICE, "port: 80", "port: 80, protocol: tcp", "spec.ports: 'tcp' is no protocol"),
        (
            SERVICE,
            "{name: http, port: 80}",
            "{port: 80}, {port: 81}",
            "spec.ports: several are named ''",
        ),
        (SERVICE, "spec: {", "spec: [{", "no YAML"),
        (SERVICE, "namespace: shop", "namespace: shop, labels: {a: 1}", "got `int`"),
        (SERVICE, "namespace: shop", "namespace: shop, labels: {a: 'x;k8s:b=c'}", "'x;k8s:b=c'"),
        (SERVICE, "namespace: shop", "namespace: shop, labels: {'a=b': c}", "'c' is no label"),
        (NODE, "10.1.0.0/24", "10.1.0.1/24", "spec.podCIDRs: 10.1.0.1/24 has host bits set"),
        (NODE, "10.1.0.0/24", "here", "spec.podCIDRs: 'here'"),
        (NODE, "10.1.0.0/24", "0.0.0.0/0", "0.0.0.0/0 is larger than a /8"),
        (NODE, "10.1.0.0/24", "127.0.0.0/24", "has loopback addresses"),
        (NODE, "podCIDRs", "podCIDRS", "spec.podCIDRS is no field of a Node"),
        (NODE, "192.0.2.1", "fe80::1", "status.addresses: fe80::1"),
        (
            NODE,
            "name: node1",
            "name: node1, annotations: {clustermesh.io/external-address: 127.0.0.1}",
            "metadata.annotations: clustermesh.io/external-address: 127.0.0.1",
        ),
        (NODE, "name: node1", "name: node1, namespace: x", "this kind is in no namespace"),
        (POD, "podIP: 10.1.0.7", "podIP: 10.1.0.700", "status: '10.1.0.700' is no IP address"),
        (POD, "{ip: 10.1.0.7}", "{ip: '::1'}", "status: ::1"),
        (POD, "containerPort: 80", "containerPort: 0", "spec.containers.ports: 0 is no port"),
        (POD, "protocol: TCP", "protocol: X", "spec.containers.ports: 'X' is no protocol"),
        (SLICE, "addressType: IPv4", "addressType: IPv5", "addressType is 'IPv5'"),
        (SLICE, "addressType: IPv4", "", "addressType is ''"),
        (SLICE, "[10.1.0.7]", "[web]", "endpoints.addresses: 'web' is no IP address"),
        (SLICE, "ready: true", "redy: true", "endpoints.conditions.redy is no field"),
        (SLICE, "ready: true", "ready: yes please", "Expected `bool | null`"),
        (SLICE, "port: 80", "port: 70000", "ports: 70000 is no port"),
        (MESH_NODE, "wireguardPublicKey", "wireguardKey", "wireguardKey"),
        (NAMESPACE, "kind: Namespace", "", "it has no apiVersion and kind"),
        (NAMESPACE, "kind: Namespace", "kind: [Namespace]", "its apiVersion or kind is no string"),
        (NAMESPACE, "kind: Namespace", "kind: List\nitems: 5", "items is no list"),
        (NAMESPACE, "metadata: {name: shop}", "", "missing required field `metadata`"),
        (NAMESPACE, "{name: shop}", "[1]", "Expected `object`, got `array` - at `$.metadata`"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_and_the_other_documents_are_used(
    text: str, old: str, new: str, named: str
) -> None:
    assert old in text
    broken = text.replace(old, new)
    found = mistakes(f"{NAMESPACE}\n---\n{broken}\n---\n{NODE}")
    if "no YAML" in named:  # where a document ends is not known either
        assert found[0].startswith("a.yaml: no YAML: ")
    else:
        assert len(found) == 1
        assert found[0].startswith("a.yaml, document 2")
        assert named in found[0]
        good = names(f"{NAMESPACE}\n---\n{broken}\n---\n{NODE}")
        assert good == ["Namespace shop", "Node node1"]


def test_what_a_file_has_twice_is_named_and_the_first_one_counts() -> None:
    text = f"{SERVICE}\n---\n{SERVICE.replace('10.0.0.1', '10.0.0.2')}"
    assert mistakes(text) == [
        "a.yaml, document 2 (Service web): the file has it already, further up"
    ]
    assert names(text) == ["Service web"]
    assert mistakes(f"{SERVICE}\n---\n{SERVICE.replace('shop', 'other')}") == []


def test_a_mistake_in_a_list_is_named_with_the_object() -> None:
    (found,) = mistakes(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, "
        "metadata: {name: web, namespace: shop}, spec: {ports: [{port: 0}]}}\n- 5"
    )[:1]
    assert found == "a.yaml, document 1 (Service web): spec.ports: 0 is no port (1-65535)"


@pytest.mark.parametrize(
    "text",
    ["a: !!int x", "!!timestamp x", "!!bool x", "!!python/object:os.system x", "\x00", "a: ["],
)
def test_what_is_no_yaml_is_one_mistake_and_never_a_crash(text: str) -> None:
    (found,) = mistakes(text)
    assert found.startswith("a.yaml: no YAML: ")


def test_what_refers_to_itself_or_is_too_deep_is_a_mistake_at_worst() -> None:
    assert mistakes("&a [*a]") == ["a.yaml, document 1: it has no apiVersion and kind"]
    assert mistakes(NAMESPACE.replace("{name: shop}", "&m {name: shop, labels: *m}"))
    assert mistakes("[" * 3000 + "]" * 3000)


@given(st.binary() | st.text().map(str.encode))
def test_no_bytes_whatsoever_crash_the_reader(text: bytes) -> None:
    parse(text, "a.yaml")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("v1"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "namespace", "labels", "ports", "port", "addresses", "podCIDRs"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(
    st.sampled_from(["Service", "Node", "Pod", "EndpointSlice", "MeshNode", "Namespace", "List"]),
    st.dictionaries(
        st.sampled_from(["metadata", "spec", "status", "endpoints", "ports", "items"]), values
    ),
)
def test_no_shape_whatsoever_crashes_the_reader(kind: str, fields: dict[str, object]) -> None:
    versions = {
        "EndpointSlice": "discovery.k8s.io/v1",
        "MeshNode": "clustermesh.io/v1alpha1",
    }
    item = {"apiVersion": versions.get(kind, "v1"), "kind": kind, **fields}
    found = parse(json.dumps(item).encode(), "a.yaml")
    assert kind == "List" or len(found.objects) + len(found.problems) == 1
