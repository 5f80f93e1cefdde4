"""The wire format, held to examples that were written by hand from what Cilium publishes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh import kinds
from clustermesh.errors import BadRowError, UserError
from clustermesh.kinds import ENDPOINTS, IDENTITIES, LOCAL_SERVICES, NODES, SERVICES, Kind, Owner
from clustermesh.model import (
    Affinity,
    ClusterConfig,
    ClusterId,
    ClusterName,
    Endpoint,
    Identity,
    IdentityId,
    IPAddress,
    IPNetwork,
    Node,
    ObjectName,
    Port,
    Protocol,
    Service,
    Zone,
    identity_range,
    parse_cluster_id,
    parse_cluster_name,
)

WEST = Owner(ClusterName("west"), ClusterId(42), 255)
WEB = ObjectName("shop", "web")
FIRST = IdentityId(0x2A0000)
V4, V6 = IPv4Address("10.2.0.7"), IPv6Address("fd00:2::7")

NODE = Node(
    cluster=WEST.cluster,
    cluster_id=WEST.id,
    name="node1",
    addresses=(
        ("InternalIP", IPv4Address("192.0.2.1")),
        ("ExternalIP", IPv6Address("2001:db8::1")),
    ),
    pod_cidrs=(
        IPv4Network("10.2.0.0/24"),
        IPv4Network("10.2.8.0/21"),
        IPv6Network("fd00:2::/64"),
    ),
    labels={"zone": "b", "arch": "arm64"},
    wireguard_public_key="bWVzaA==",
    boot_id="6f6b",
    health_ips=(IPv4Address("10.2.0.1"),),
)
NODE_JSON = (
    b'{"Name":"node1","Cluster":"west",'
    b'"IPAddresses":[{"Type":"InternalIP","IP":"192.0.2.1"},'
    b'{"Type":"ExternalIP","IP":"2001:db8::1"}],'
    b'"IPv4AllocCIDR":{"IP":"10.2.0.0","Mask":"////AA=="},'
    b'"IPv4SecondaryAllocCIDRs":[{"IP":"10.2.8.0","Mask":"///4AA=="}],'
    b'"IPv6AllocCIDR":{"IP":"fd00:2::","Mask":"//////////8AAAAAAAAAAA=="},'
    b'"IPv6SecondaryAllocCIDRs":null,'
    b'"IPv4HealthIP":"10.2.0.1","IPv6HealthIP":"","IPv4IngressIP":"","IPv6IngressIP":"",'
    b'"ClusterID":42,"Source":"custom-resource","EncryptionKey":0,'
    b'"Labels":{"arch":"arm64","zone":"b"},"Annotations":null,'
    b'"WireguardPubKey":"bWVzaA==","BootID":"6f6b"}'
)

HTTP, DNS = Port(Protocol.TCP, 80), Port(Protocol.UDP, 53)
SERVICE = Service(
    cluster=WEST.cluster,
    cluster_id=WEST.id,
    name=WEB,
    frontends={IPv4Address("10.102.0.1"): {"http": HTTP, "": DNS}},
    backends={V6: {"http": HTTP}, V4: {"http": Port(Protocol.TCP, 8080)}},
    labels={"b": "2", "a": "1"},
    selector={"app": "web"},
    hostnames={V4: "web-0"},
    zones={V4: Zone("z1", ("z1", "z2"))},
)
SERVICE_JSON = (
    b'{"cluster":"west","namespace":"shop","name":"web",'
    b'"frontends":{"10.102.0.1":{"":{"Protocol":"UDP","Port":53},'
    b'"http":{"Protocol":"TCP","Port":80}}},'
    b'"backends":{"10.2.0.7":{"http":{"Protocol":"TCP","Port":8080}},'
    b'"fd00:2::7":{"http":{"Protocol":"TCP","Port":80}}},'
    b'"hostnames":{"10.2.0.7":"web-0"},'
    b'"zones":{"10.2.0.7":{"zone":"z1","forZones":[{"name":"z1"},{"name":"z2"}]}},'
    b'"labels":{"a":"1","b":"2"},"selector":{"app":"web"},'
    b'"includeExternal":true,"shared":true,"clusterID":42}'
)
EMPTY_SERVICE = Service(WEST.cluster, WEST.id, WEB, frontends={}, backends={})
EMPTY_SERVICE_JSON = (
    b'{"cluster":"west","namespace":"shop","name":"web","frontends":{},"backends":{},'
    b'"labels":{},"selector":{},"includeExternal":true,"shared":true,"clusterID":42}'
)

ENDPOINT = Endpoint(
    ip=V4,
    node_ip=IPv4Address("192.0.2.1"),
    identity=FIRST,
    pod=ObjectName("shop", "web-0"),
    uid="0a1b",
    service_account="default",
    named_ports=(("http", 8080, Protocol.TCP),),
)
ENDPOINT_JSON = (
    b'{"IP":"10.2.0.7","HostIP":"192.0.2.1","ID":2752512,"Key":0,"Metadata":"",'
    b'"K8sNamespace":"shop","K8sPodName":"web-0","K8sPodUID":"0a1b",'
    b'"K8sServiceAccount":"default",'
    b'"NamedPorts":[{"Name":"http","Port":8080,"Protocol":"TCP"}]}'
)
BARE_ENDPOINT = Endpoint(V4, None, FIRST, ObjectName("", ""))
BARE_ENDPOINT_JSON = b'{"IP":"10.2.0.7","HostIP":"","ID":2752512,"Key":0,"Metadata":""}'

IDENTITY = Identity(FIRST, (("k8s", "app", "web"), ("k8s", "io.cilium.k8s.policy.cluster", "west")))
IDENTITY_TEXT = b"k8s:app=web;k8s:io.cilium.k8s.policy.cluster=west;"


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        (NODES, NODE, NODE_JSON),
        (SERVICES, SERVICE, SERVICE_JSON),
        (SERVICES, EMPTY_SERVICE, EMPTY_SERVICE_JSON),
        (LOCAL_SERVICES, SERVICE, SERVICE_JSON[:-1] + b',"affinity":"none"}'),
        (ENDPOINTS, ENDPOINT, ENDPOINT_JSON),
        (ENDPOINTS, BARE_ENDPOINT, BARE_ENDPOINT_JSON),
        (IDENTITIES, IDENTITY, IDENTITY_TEXT),
    ],
)
def test_a_row_is_written_as_cilium_writes_it(
    kind: Kind[Any, Any], row: Any, expected: bytes
) -> None:
    assert kind.encode(row) == expected


def test_a_node_without_cidrs_has_null_for_them() -> None:
    bare = Node(WEST.cluster, WEST.id, "node1", (), ())
    wire = json.loads(NODES.encode(bare))
    assert {name: wire[name] for name in wire if "CIDR" in name} == {
        "IPv4AllocCIDR": None,
        "IPv4SecondaryAllocCIDRs": None,
        "IPv6AllocCIDR": None,
        "IPv6SecondaryAllocCIDRs": None,
    }
    assert (wire["IPAddresses"], wire["Labels"], wire["WireguardPubKey"]) == ([], {}, "")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            ClusterConfig(ClusterId(7)),
            (
                b'{"id":7,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,'
                b'"serviceExportsEnabled":false}}'
            ),
        ),
        (
            ClusterConfig(ClusterId(511), 511, cached=True),
            (
                b'{"id":511,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":511,'
                b'"serviceExportsEnabled":false,"cached":true}}'
            ),
        ),
    ],
)
def test_a_cluster_introduces_itself(config: ClusterConfig, expected: bytes) -> None:
    assert kinds.encode_cluster_config(config) == expected
    assert kinds.decode_cluster_config(expected) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # What an old cluster leaves out is what it did when nobody had a choice.
        (b'{"id":3}', ClusterConfig(ClusterId(3), synced_canaries=False)),
        (b'{"id":3,"capabilities":{},"new":1}', ClusterConfig(ClusterId(3), synced_canaries=False)),
        (
            b'{"id":3,"capabilities":{"serviceExportsEnabled":null,"syncedCanaries":true}}',
            ClusterConfig(ClusterId(3)),
        ),
    ],
)
def test_what_another_version_leaves_out_or_adds_does_no_harm(
    text: bytes, expected: ClusterConfig
) -> None:
    assert kinds.decode_cluster_config(text) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b'{"id":0}', "cluster id 0 is not in 1-255"),
        (b'{"id":-1}', "cluster id -1"),
        (b'{"id":256}', "cluster id 256 is not in 1-255"),
        (b'{"id":512,"capabilities":{"maxConnectedClusters":511}}', "512 is not in 1-511"),
        (b'{"id":1,"capabilities":{"maxConnectedClusters":300}}', "maxConnectedClusters is 300"),
        (b'{"id":"1"}', "Expected `int`"),
        (b"", "truncated"),
    ],
)
def test_a_cluster_config_that_cannot_be_is_refused(text: bytes, named: str) -> None:
    with pytest.raises(BadRowError, match=named):
        kinds.decode_cluster_config(text)


def test_every_key_is_where_cilium_has_it() -> None:
    west = WEST.cluster
    assert kinds.cluster_config_key(west) == "cilium/cluster-config/west"
    assert kinds.HEARTBEAT == "cilium/.heartbeat"
    assert {k.prefix(west) + k.key(key) for k, key in keys()} == {
        "cilium/state/nodes/v1/west/node1",
        "cilium/state/services/v1/west/shop/web",
        "cilium/state/identities/v1/id/2752512",
        "cilium/state/ip/v1/default/10.2.0.7",
        "clustermesh/local/services/v1/west/shop/web",
    }
    assert {k.prefix(west, cached=True) + k.key(key) for k, key in keys()[:4]} == {
        "cilium/cache/nodes/v1/west/node1",
        "cilium/cache/services/v1/west/shop/web",
        "cilium/cache/identities/v1/west/id/2752512",
        "cilium/cache/ip/v1/west/10.2.0.7",
    }
    assert [k.canary(west) for k, _ in keys()] == [
        "cilium/synced/west/cilium/state/nodes/v1",
        "cilium/synced/west/cilium/state/services/v1",
        "cilium/synced/west/cilium/state/identities/v1",
        "cilium/synced/west/cilium/state/ip/v1",
        "cilium/synced/west/clustermesh/local/services/v1",
    ]
    assert NODES.canary(west, cached=True) == "cilium/synced/west/cilium/cache/nodes/v1"
    assert NODES.canary(ClusterName("v1")) == "cilium/synced/v1/cilium/state/nodes/v1"


@pytest.mark.parametrize("kind", [NODES, SERVICES, IDENTITIES, ENDPOINTS, LOCAL_SERVICES])
@pytest.mark.parametrize("cached", [False, True])
def test_a_prefix_ends_with_a_slash_so_that_cluster1_is_not_cluster10(
    kind: Kind[Any, Any], cached: bool
) -> None:
    one, ten = (kind.prefix(ClusterName(n), cached=cached) for n in ("cluster1", "cluster10"))
    assert one.endswith("/")
    assert one == ten or not ten.startswith(one)


def keys() -> list[tuple[Kind[Any, Any], Any]]:
    return [
        (NODES, "node1"),
        (SERVICES, WEB),
        (IDENTITIES, FIRST),
        (ENDPOINTS, V4),
        (LOCAL_SERVICES, WEB),
    ]


@pytest.mark.parametrize(("kind", "key"), keys())
def test_a_key_can_be_read_back(kind: Kind[Any, Any], key: Any) -> None:
    assert kind.parse_key(kind.key(key)) == key


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (NODES, ""),
        (NODES, "a/b"),
        (SERVICES, "web"),
        (SERVICES, "shop/"),
        (SERVICES, "/web"),
        (SERVICES, "shop/web/x"),
        (IDENTITIES, ""),
        (IDENTITIES, "-1"),
        (IDENTITIES, "1e3"),
        (IDENTITIES, "\u0661"),
        (IDENTITIES, "9" * 5000),
        (ENDPOINTS, "10.0.0.0/24"),
        (ENDPOINTS, "10.0.0"),
        (ENDPOINTS, "127.0.0.1"),
    ],
)
def test_a_key_that_is_none_is_refused(kind: Kind[Any, Any], text: str) -> None:
    with pytest.raises(BadRowError):
        kind.parse_key(text)


# --- what is read --------------------------------------------------------------------------------


def test_a_node_is_read_as_it_was_written() -> None:
    assert NODES.decode(WEST, "node1", NODE_JSON) == NODE


def test_a_cilium_node_with_its_own_addresses_is_read() -> None:
    text = changed(NODE_JSON, IPAddresses=[{"Type": "CiliumInternalIP", "IP": "10.2.0.250"}])
    node = NODES.decode(WEST, "node1", text)
    assert node.addresses == (("CiliumInternalIP", IPv4Address("10.2.0.250")),)
    assert node.internal_ip(4) is None


def test_of_another_clusters_service_only_the_backends_are_kept() -> None:
    service = SERVICES.decode(WEST, WEB, SERVICE_JSON)
    assert service == Service(WEST.cluster, WEST.id, WEB, frontends={}, backends=SERVICE.backends)


def test_of_our_own_service_frontends_and_affinity_are_kept() -> None:
    remote = LOCAL_SERVICES.encode(SERVICE)
    local = LOCAL_SERVICES.decode(WEST, WEB, changed(remote, affinity="local", shared=False))
    assert (local.frontends, local.affinity) == (SERVICE.frontends, Affinity.LOCAL)
    assert not local.shared


@pytest.mark.parametrize("backends", [{}, None])
def test_a_service_without_backends_is_read(backends: object) -> None:
    text = changed(SERVICE_JSON, backends=backends)
    assert SERVICES.decode(WEST, WEB, text).backends == {}


def test_an_endpoint_and_an_identity_are_read() -> None:
    endpoint = ENDPOINTS.decode(WEST, V4, ENDPOINT_JSON)
    assert (endpoint.identity, str(endpoint.pod)) == (FIRST, "shop/web-0")
    assert ENDPOINTS.decode(WEST, V4, BARE_ENDPOINT_JSON) == BARE_ENDPOINT
    assert ENDPOINTS.decode(WEST, V4, changed(BARE_ENDPOINT_JSON, HostIP=None)) == BARE_ENDPOINT
    assert IDENTITIES.decode(WEST, FIRST, IDENTITY_TEXT) == IDENTITY
    without_end = IDENTITY_TEXT.removesuffix(b";")
    assert IDENTITIES.decode(WEST, FIRST, without_end) == IDENTITY


# --- lies ----------------------------------------------------------------------------------------


def changed(text: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(text), **fields}).encode()


def cidr(ip: str, mask: str) -> Mapping[str, object]:
    return {"IPv4AllocCIDR": {"IP": ip, "Mask": mask}}


def cidr6(ip: str, mask: str = "//////////8AAAAAAAAAAA==") -> Mapping[str, object]:
    return {"IPv6AllocCIDR": {"IP": ip, "Mask": mask}}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"Name": "node2"}, "Name is 'node2', not 'node1'"),
        ({"Cluster": "east"}, "Cluster is 'east', not 'west'"),
        ({"ClusterID": 41}, "ClusterID is 41, not 42"),
        ({"ClusterID": True}, "Expected `int`"),
        ({"IPAddresses": [{"Type": "InternalIP", "IP": "here"}]}, "'here' is no IP address"),
        ({"IPAddresses": [{"Type": "InternalIP", "IP": "127.0.0.1"}]}, "127.0.0.1"),
        ({"IPAddresses": [{"Type": "InternalIP", "IP": "fe80::1%eth0"}]}, "fe80::1%eth0"),
        ({"Annotations": {"clustermesh.io/external-address": "169.254.0.1"}}, "169.254.0.1"),
        ({"Annotations": {"clustermesh.io/external-address": "here"}}, "'here' is no IP address"),
        (cidr("0.0.0.0", "AAAAAA=="), "0.0.0.0"),
        (cidr("10.0.0.0", "/gAAAA=="), "larger than a /8"),
        (cidr("127.0.0.0", "////AA=="), "127.0.0.0"),
        (cidr("169.254.0.0", "//8AAA=="), "169.254.0.0"),
        (cidr("224.0.0.0", "//8AAA=="), "224.0.0.0"),
        (cidr("240.0.0.0", "//8AAA=="), "240.0.0.0"),
        (cidr("10.2.0.1", "////AA=="), "host bits"),
        (cidr("10.2.0.0", "//8B/w=="), "mask does not fit"),
        (cidr("10.2.0.0", "//8="), "mask does not fit"),
        (cidr("10.2.0.0", "?"), "10.2.0.0 with mask ?"),
        (cidr("10.2.0.0", ""), "mask does not fit"),
        (cidr6("::"), "::"),
        (cidr6("fd00:2::1"), "host bits"),
        (cidr6("fd00:2::%eth0"), "eth0"),
        (cidr6("fe80::"), "fe80::"),
        (cidr6("ff02::"), "ff02::"),
        (cidr6("fd00::", "/wAAAAAAAAAAAAAAAAAAAA=="), "larger than a /16"),
        (cidr6("fd00::", "////AA=="), "mask does not fit"),
    ],
)
def test_a_node_that_lies_is_named(fields: Mapping[str, object], named: str) -> None:
    with pytest.raises(BadRowError) as refused:
        NODES.decode(WEST, "node1", changed(NODE_JSON, **fields))
    assert named in str(refused.value)


PORT = {"Protocol": "TCP", "Port": 80}


@pytest.mark.parametrize("kind", [SERVICES, LOCAL_SERVICES])
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"cluster": "east"}, "cluster is 'east', not 'west'"),
        ({"clusterID": 1}, "clusterID is 1, not 42"),
        ({"namespace": "kube-system"}, "namespace is 'kube-system', not 'shop'"),
        ({"name": "db"}, "name is 'db', not 'web'"),
        ({"backends": {"x": {}}}, "'x' is no IP address"),
        ({"backends": {"127.0.0.1": {}}}, "127.0.0.1"),
        ({"backends": {"0.0.0.0": {}}}, "0.0.0.0"),
        ({"backends": {"255.255.255.255": {}}}, "255.255.255.255"),
        ({"backends": {"224.0.0.1": {}}}, "224.0.0.1"),
        ({"backends": {"169.254.1.1": {}}}, "169.254.1.1"),
        ({"backends": {"::1": {}}}, "::1"),
        ({"backends": {"::": {}}}, "::"),
        ({"backends": {"::ffff:10.0.0.1": {}}}, "::ffff:10.0.0.1"),
        ({"backends": {"fe80::1": {}}}, "fe80::1"),
        ({"backends": {"10.0.0.1": {"http": {**PORT, "Port": 0}}}}, "port 'http' is 0"),
        ({"backends": {"10.0.0.1": {"http": {**PORT, "Port": 65536}}}}, "port 'http' is 65536"),
        ({"backends": {"10.0.0.1": {"x": {**PORT, "Protocol": "ICMP"}}}}, "protocol 'ICMP'"),
        ({"backends": []}, "Expected `object"),
    ],
)
def test_a_service_that_lies_is_named(
    kind: Kind[ObjectName, Service], fields: Mapping[str, object], named: str
) -> None:
    with pytest.raises(BadRowError) as refused:
        kind.decode(WEST, WEB, changed(SERVICE_JSON, **fields))
    assert named in str(refused.value)


def test_a_service_that_is_not_shared_has_no_business_here() -> None:
    with pytest.raises(BadRowError, match="not shared"):
        SERVICES.decode(WEST, WEB, changed(SERVICE_JSON, shared=False))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"IP": "10.2.0.8"}, "IP is 10.2.0.8"),
        ({"IP": "everywhere"}, "'everywhere' is no IP address"),
        ({"HostIP": "127.0.0.1"}, "127.0.0.1"),
        ({"ID": 0}, "identity 0"),
        ({"ID": 0x29FFFF}, "identity 2752511 is not one of cluster id 42"),
        ({"ID": 0x2B0000}, "identity 2818048 is not one of cluster id 42"),
        ({"ID": 256}, "identity 256"),
        ({"ID": -1}, "identity -1"),
    ],
)
def test_an_endpoint_that_lies_is_named(fields: Mapping[str, object], named: str) -> None:
    with pytest.raises(BadRowError) as refused:
        ENDPOINTS.decode(WEST, V4, changed(ENDPOINT_JSON, **fields))
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("number", "text", "named"),
    [
        (0x29FFFF, IDENTITY_TEXT, "not in 2752512-2818047"),
        (0x2B0000, IDENTITY_TEXT, "not in 2752512-2818047"),
        (1, IDENTITY_TEXT, "identity 1 is not in"),
        (FIRST, b"k8s:app=web;", "no label k8s:io.cilium.k8s.policy.cluster=west"),
        (FIRST, b"k8s:io.cilium.k8s.policy.cluster=east;", "=east of another cluster"),
        (FIRST, b"any:io.cilium.k8s.policy.cluster=west;", "of another cluster"),
        (
            FIRST,
            IDENTITY_TEXT + b"k8s:io.cilium.k8s.policy.cluster=east;",
            "=east of another cluster",
        ),
        (FIRST, b"", "label '' is not source:key=value"),
        (FIRST, IDENTITY_TEXT + b";", "label ''"),
        (FIRST, b"app=web;", "'app=web' is not source:key=value"),
        (FIRST, b"k8s:\xff=;", "no UTF-8"),
    ],
)
def test_an_identity_that_lies_is_named(number: int, text: bytes, named: str) -> None:
    with pytest.raises(BadRowError) as refused:
        IDENTITIES.decode(WEST, IdentityId(number), text)
    assert named in str(refused.value)


DEEP = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@given(
    st.binary()
    | st.just(DEEP)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(
            st.sampled_from(["IP", "ID", "id", "Name", "cluster", "backends", "capabilities"])
            | st.text(),
            inner,
        ),
    ).map(lambda value: json.dumps(value).encode())
)  # fmt: skip
def test_whatever_bytes_come_only_the_row_is_bad(text: bytes) -> None:
    for kind, key in keys():
        only_bad(lambda k=kind, at=key: k.decode(WEST, at, text))  # type: ignore[misc]
        only_bad(lambda k=kind: k.parse_key(text.decode(errors="replace")))  # type: ignore[misc]
    only_bad(lambda: kinds.decode_cluster_config(text))


@given(st.sampled_from([NODE_JSON, SERVICE_JSON, ENDPOINT_JSON, IDENTITY_TEXT]), st.data())
def test_a_row_with_a_byte_that_is_wrong_is_bad_at_worst(text: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text) - 1))
    broken = text[:at] + data.draw(st.binary(max_size=3)) + text[at + 1 :]
    for kind, key in keys():
        only_bad(lambda k=kind, at=key: k.decode(WEST, at, broken))  # type: ignore[misc]


def only_bad(decode: Callable[[], object]) -> None:
    with suppress(BadRowError):
        decode()


# --- round trips ---------------------------------------------------------------------------------

words = st.text("abcz019-./", min_size=1, max_size=8)
word_pairs = st.dictionaries(words, words, max_size=3)


@st.composite
def addresses(draw: st.DrawFn) -> IPAddress:
    number = draw(st.integers(0, 0xFFFF))
    if draw(st.booleans()):
        return IPv4Address("10.2.0.0") + number
    return IPv6Address("fd00:2::") + number


@st.composite
def cidrs(draw: st.DrawFn) -> IPNetwork:
    length = draw(st.integers(0, 16))
    address = draw(addresses())
    return ip_network((address, address.max_prefixlen - length), strict=False)


ports = st.dictionaries(
    st.sampled_from(["", "http", "dns"]),
    st.builds(Port, st.sampled_from(Protocol), st.integers(1, 65535)),
)
nodes = st.builds(
    Node,
    cluster=st.just(WEST.cluster),
    cluster_id=st.just(WEST.id),
    name=st.just("node1"),
    addresses=st.lists(st.tuples(words, addresses())).map(tuple),
    pod_cidrs=st.lists(cidrs()).map(lambda found: tuple(sorted(found, key=lambda c: c.version))),
    labels=word_pairs,
    wireguard_public_key=st.just("") | words,
    boot_id=st.just("") | words,
    health_ips=st.sampled_from([(), (V4,), (V6,), (V4, V6)]),
    external_address=st.sampled_from([None, V4, V6]),
)
services = st.builds(
    Service,
    cluster=st.just(WEST.cluster),
    cluster_id=st.just(WEST.id),
    name=st.just(WEB),
    frontends=st.dictionaries(addresses(), ports, max_size=2),
    backends=st.dictionaries(addresses(), ports, max_size=4),
    labels=word_pairs,
    selector=word_pairs,
    shared=st.booleans(),
    affinity=st.sampled_from(Affinity),
)


@given(nodes)
def test_any_node_can_be_read_back(node: Node) -> None:
    assert NODES.decode(WEST, "node1", NODES.encode(node)) == node


@given(services)
def test_any_service_can_be_read_back_by_its_own_cluster(service: Service) -> None:
    assert LOCAL_SERVICES.decode(WEST, WEB, LOCAL_SERVICES.encode(service)) == service


@given(st.lists(st.tuples(words, words, words)))
def test_any_identity_can_be_read_back(labels: list[tuple[str, str, str]]) -> None:
    own = ("k8s", kinds.CLUSTER_LABEL, "west")
    identity = Identity(FIRST, tuple(sorted([own, *labels])))
    assert IDENTITIES.decode(WEST, FIRST, IDENTITIES.encode(identity)) == identity


@given(addresses(), st.none() | addresses(), st.sampled_from(WEST.identities), words)
def test_any_endpoint_can_be_read_back(
    ip: IPAddress, node_ip: IPAddress | None, identity: int, name: str
) -> None:
    endpoint = Endpoint(ip, node_ip, IdentityId(identity), ObjectName(name, name), name, name)
    key = ENDPOINTS.parse_key(ENDPOINTS.key(ip))
    assert ENDPOINTS.decode(WEST, key, ENDPOINTS.encode(endpoint)) == endpoint


# --- names and numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster_id", "clusters", "first", "last"),
    [(42, 255, 0x2A0000, 0x2AFFFF), (1, 511, 0x008000, 0x00FFFF), (255, 255, 0xFF0000, 0xFFFFFF)],
)
def test_a_clusters_identities_begin_at_its_id(
    cluster_id: int, clusters: int, first: int, last: int
) -> None:
    numbers = identity_range(ClusterId(cluster_id), clusters)
    assert (numbers[0], numbers[-1]) == (first, last)


@pytest.mark.parametrize("clusters", [255, 511])
def test_no_two_clusters_share_an_identity_and_all_fit_into_a_vni(clusters: int) -> None:
    ranges = [identity_range(ClusterId(n), clusters) for n in range(1, clusters + 1)]
    assert all(one.stop == other.start for one, other in pairwise(ranges))
    assert ranges[0].start > max(kinds.RESERVED_IDENTITIES)
    assert ranges[-1].stop == 1 << 24


@pytest.mark.parametrize("name", ["a", "9", "east", "a-b", "1--2", "a" * 32])
def test_a_cluster_may_be_called_so(name: str) -> None:
    assert parse_cluster_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "East", "a_b", "a.b", "a-", "-a", "a" * 33, "a\n", "é", "a/b"]
)
def test_a_cluster_may_not_be_called_so(name: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_cluster_name(name)
    assert repr(name) in str(refused.value)
    assert refused.value.hint


@pytest.mark.parametrize(("number", "clusters"), [(0, 255), (256, 255), (300, 255), (512, 511)])
def test_a_cluster_id_out_of_range_is_named_with_the_range(number: int, clusters: int) -> None:
    with pytest.raises(UserError, match=rf"id {number} is out of range \(choose 1-{clusters}\)"):
        parse_cluster_id(number, clusters)
    assert parse_cluster_id(clusters, clusters) == clusters


def test_an_address_is_read_the_same_however_it_is_written() -> None:
    assert ENDPOINTS.parse_key("FD00:2:0::7") == ip_address("fd00:2::7")
