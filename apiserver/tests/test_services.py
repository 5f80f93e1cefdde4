"""What of a Service is published: every sentence of "Meaning" about it, from manifests."""

from __future__ import annotations

import pytest

from apiserver.manifests import parse
from apiserver.objects import EndpointSlice, Service
from apiserver.rules.services import services
from clustermesh import model
from clustermesh.model import ClusterId, ClusterName, L4Address, ObjectName

WEB = ObjectName("shop", "web")
GLOBAL = 'service.cilium.io/global: "true"'

SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop, labels: {{tier: front}}, annotations: {{{annotations}}}}}
spec:
  clusterIPs: [10.101.0.1, fd00:101::1]
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: dns, port: 53, protocol: UDP}}]
  {more}
"""

SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: {family}
ports: {ports}
endpoints: {endpoints}
"""
PORTS = "[{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]"


def service(*annotations: str, more: str = "") -> Service:
    (found,) = parsed(SERVICE.format(annotations=", ".join(annotations), more=more))
    assert isinstance(found, Service)
    return found


def piece(
    endpoints: str, *, name: str = "web-1", ports: str = PORTS, family: str = "IPv4"
) -> EndpointSlice:
    text = SLICE.format(name=name, endpoints=endpoints, ports=ports, family=family)
    (found,) = parsed(text)
    assert isinstance(found, EndpointSlice)
    assert found.service == WEB
    return found


def parsed(text: str) -> tuple[object, ...]:
    found = parse(text.encode(), "test")
    assert not found.problems
    return found.objects


def exported(*rows: Service | EndpointSlice) -> model.Service | None:
    """What is made of a Service and its slices."""
    found = services(
        WEB,
        {row.metadata.uid: row for row in rows if isinstance(row, Service)},
        {row.key: row for row in rows if isinstance(row, EndpointSlice)},
        cluster=ClusterName("east"),
        cluster_id=ClusterId(1),
    )
    assert found.keys() <= {WEB}
    return found.get(WEB)


def shown(*rows: Service | EndpointSlice) -> str:
    """The backends as a person would print them; `-` for a service that is not exported."""
    row = exported(*rows)
    if row is None:
        return "-"
    return "  ".join(
        f"{name or '(unnamed)'}={L4Address(ip, port.port, port.protocol)}"
        for ip, ports in row.backends.items()
        for name, port in ports.items()
    )


def test_a_global_service_is_exported_with_its_frontends_and_ready_backends() -> None:
    row = exported(service(GLOBAL), piece("[{addresses: [10.1.0.7]}]"))
    assert row is not None
    assert (row.cluster, row.cluster_id, row.name) == ("east", 1, WEB)
    assert [str(ip) for ip in row.frontends] == ["10.101.0.1", "fd00:101::1"]
    assert {str(row.frontends[ip]) for ip in row.frontends} == {
        str({"http": model.Port(model.Protocol.TCP, 80), "dns": model.Port(model.Protocol.UDP, 53)})
    }
    assert (row.labels, row.selector) == ({"tier": "front"}, {"app": "web"})
    assert (row.shared, row.include_external, row.affinity) == (True, True, "none")
    assert shown(service(GLOBAL), piece("[{addresses: [10.1.0.7]}]")) == (
        "http=10.1.0.7:8080/TCP  dns=10.1.0.7:53/UDP"
    )


@pytest.mark.parametrize(
    ("annotations", "is_exported", "is_shared"),
    [
        ([], False, False),
        (['service.cilium.io/global: "true"'], True, True),
        (['clustermesh.io/global: "true"'], True, True),
        (['service.cilium.io/global: "True"'], True, True),
        (['service.cilium.io/global: "false"'], False, False),
        (['service.cilium.io/global: "yes"'], False, False),
        (['service.cilium.io/global: ""'], False, False),
        (['service.cilium.io/shared: "true"'], False, False),
        ([GLOBAL, 'service.cilium.io/shared: "true"'], True, True),
        ([GLOBAL, 'service.cilium.io/shared: "false"'], True, False),
        ([GLOBAL, 'clustermesh.io/shared: "false"'], True, False),
        ([GLOBAL, 'clustermesh.io/global: "false"'], True, True),
        (
            [
                GLOBAL,
                'service.cilium.io/shared: "true"',
                'clustermesh.io/shared: "false"',
            ],
            True,
            True,
        ),
        (['io.cilium/global-service: "true"'], False, False),
    ],
)
def test_annotations_say_whether_a_service_is_global_and_shared(
    annotations: list[str], is_exported: bool, is_shared: bool
) -> None:
    row = exported(service(*annotations))
    assert (row is not None, bool(row and row.shared)) == (is_exported, is_shared)


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ([], "none"),
        (['service.cilium.io/affinity: "local"'], "local"),
        (['clustermesh.io/affinity: "remote"'], "remote"),
        (['service.cilium.io/affinity: "Local"'], "local"),
        (['service.cilium.io/affinity: "none"', 'clustermesh.io/affinity: "local"'], "none"),
        (['service.cilium.io/affinity: "near"'], "none"),
    ],
)
def test_affinity_is_what_an_annotation_says(annotations: list[str], expected: str) -> None:
    row = exported(service(GLOBAL, *annotations))
    assert row is not None
    assert row.affinity == expected


def test_slices_that_come_first_wait_for_their_service() -> None:
    assert shown(piece("[{addresses: [10.1.0.7]}]")) == "-"


def test_without_a_ready_endpoint_a_service_is_exported_without_backends() -> None:
    for slices in ([], [piece("[]")], [piece("null")], [piece(NOT_READY)]):
        row = exported(service(GLOBAL), *slices)
        assert row is not None
        assert row.backends == {}


NOT_READY = "[{addresses: [10.1.0.7], conditions: {ready: false, serving: true}}]"


def test_only_ready_endpoints_count_and_what_nothing_is_said_of_is_ready() -> None:
    endpoints = (
        "[{addresses: [10.1.0.7], conditions: {ready: false}}, "
        "{addresses: [10.1.0.8], conditions: {ready: true}}, "
        "{addresses: [10.1.0.9], conditions: {}}, {addresses: [10.1.0.10]}]"
    )
    assert shown(service(GLOBAL), piece(endpoints, ports="[{name: http, port: 80}]")) == (
        "http=10.1.0.8:80/TCP  http=10.1.0.9:80/TCP  http=10.1.0.10:80/TCP"
    )


def test_the_slices_of_a_service_are_put_together() -> None:
    assert shown(
        service(GLOBAL),
        piece("[{addresses: [10.1.0.7]}]", ports="[{name: http, port: 80}]"),
        piece("[{addresses: [10.1.0.7]}]", name="web-2", ports="[{name: admin, port: 81}]"),
        piece(
            '[{addresses: ["fd00:1::7"]}]',
            name="web-3",
            ports="[{name: http, port: 80}]",
            family="IPv6",
        ),
    ) == ("http=10.1.0.7:80/TCP  admin=10.1.0.7:81/TCP  http=[fd00:1::7]:80/TCP")


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ("[{port: 80}]", "(unnamed)=10.1.0.7:80/TCP"),
        ('[{name: "", port: 80, protocol: UDP}]', "(unnamed)=10.1.0.7:80/UDP"),
        ("[{name: a, port: 80}, {name: b, port: 80}]", "a=10.1.0.7:80/TCP  b=10.1.0.7:80/TCP"),
        ("[{name: any}]", ""),
        ("null", ""),
    ],
)
def test_ports_are_those_of_the_pods_by_name(ports: str, expected: str) -> None:
    assert shown(service(GLOBAL), piece("[{addresses: [10.1.0.7]}]", ports=ports)) == expected


@pytest.mark.parametrize("more", ["clusterIP: None", "clusterIPs: [None]\n  clusterIP: None"])
def test_a_headless_service_has_backends_and_no_frontend(more: str) -> None:
    text = SERVICE.format(annotations=GLOBAL, more=more).replace(
        "clusterIPs: [10.101.0.1, fd00:101::1]", ""
    )
    (found,) = parsed(text)
    assert isinstance(found, Service)
    row = exported(found, piece("[{addresses: [10.1.0.7]}]"))
    assert row is not None
    assert (row.frontends, len(row.backends)) == ({}, 1)


def test_an_external_name_is_left_alone() -> None:
    assert shown(service(GLOBAL, more="type: ExternalName")) == "-"


def test_names_of_domains_are_no_addresses() -> None:
    assert shown(service(GLOBAL), piece("[{addresses: [example.org]}]", family="FQDN")) == ""


def test_hostnames_and_zones_go_along() -> None:
    row = exported(
        service(GLOBAL),
        piece(
            "[{addresses: [10.1.0.7], hostname: web-0, zone: z1, "
            "hints: {forZones: [{name: z1}, {name: z2}]}}, {addresses: [10.1.0.8], zone: z2}]"
        ),
    )
    assert row is not None
    assert {str(ip): name for ip, name in row.hostnames.items()} == {"10.1.0.7": "web-0"}
    assert {str(ip): (z.zone, z.for_zones) for ip, z in row.zones.items()} == {
        "10.1.0.7": ("z1", ("z1", "z2")),
        "10.1.0.8": ("z2", ()),
    }
