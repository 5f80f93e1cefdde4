"""Why a backend is there, or is not: services as tables that a person would print."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.rows import Backend, BackendState, Cidr, Frontend
from agent.rules.services import frontends
from clustermesh.model import (
    Affinity,
    ClusterId,
    ClusterName,
    IPAddress,
    L4Address,
    ObjectName,
    Port,
    PortsByAddress,
    Protocol,
    Service,
)

IDS = {"east": 1, "west": 2, "north": 3}
WEB = ObjectName("default", "web")


def service(
    cluster: str,
    ready: Iterable[str] = (),
    *,
    at: Iterable[str] = (),
    affinity: str = "none",
) -> Service:
    """A service whose ports are written `10.2.0.7:80`, `[fd00::7]:53/UDP=dns`."""
    return Service(
        cluster=ClusterName(cluster),
        cluster_id=ClusterId(IDS[cluster]),
        name=WEB,
        frontends=ports(at),
        backends=ports(ready),
        affinity=Affinity(affinity),
    )


def ports(texts: Iterable[str]) -> PortsByAddress:
    found: dict[IPAddress, dict[str, Port]] = {}
    for text in texts:
        address, _, name = text.partition("=")
        host, _, rest = address.rpartition(":")
        port, _, protocol = rest.partition("/")
        of_host = found.setdefault(ip_address(host.strip("[]")), {})
        of_host[name] = Port(Protocol(protocol or "TCP"), int(port))
    return found


def rows(*services: Service) -> Mapping[str, Service]:
    return {each.cluster: each for each in services}


def nobody(_: IPAddress) -> Cidr | None:
    return None


def merged(
    *services: Service,
    owner: Callable[[IPAddress], Cidr | None] = nobody,
    own: str = "east",
    encrypts: bool = False,
) -> str:
    """What the rule makes of `services`, as a person would print it."""
    found = frontends(WEB, rows(*services), own=ClusterName(own), owner=owner, encrypts=encrypts)
    return show(found)


def show(found: Mapping[L4Address, Frontend]) -> str:
    """One line for each frontend; backends that are not used are in parentheses."""
    return "\n".join(
        "  ".join([_short(address), *map(_backend, frontend.backends)])
        for address, frontend in found.items()
    )


def _backend(backend: Backend) -> str:
    text = f"{_short(backend.address)} {backend.cluster}"
    return text if backend.state is BackendState.ACTIVE else f"({text})"


def _short(address: L4Address) -> str:
    return str(address).removesuffix("/TCP")


AT = ["10.101.0.1:80"]


def test_both_clusters_answer() -> None:
    east = service("east", ["10.1.0.7:8080"], at=AT)
    west = service("west", ["10.2.0.7:9090", "10.2.0.8:9090"], at=["10.102.0.1:80"])
    assert merged(east, west) == (
        "10.101.0.1:80  10.1.0.7:8080 east  10.2.0.7:9090 west  10.2.0.8:9090 west"
    )


def test_remote_backends_alone_will_do() -> None:
    assert merged(service("east", at=AT), service("west", ["10.2.0.7:80"])) == (
        "10.101.0.1:80  10.2.0.7:80 west"
    )


def test_a_frontend_without_any_backend_is_there_so_that_connections_are_refused() -> None:
    assert merged(service("east", at=AT)) == "10.101.0.1:80"


def test_nothing_is_done_for_a_service_that_our_cluster_does_not_have_or_not_call_global() -> None:
    west = service("west", ["10.2.0.7:80"], at=["10.102.0.1:80"])
    assert merged(west) == ""
    assert merged() == ""


def test_frontends_are_never_imported() -> None:
    west = service("west", ["10.2.0.7:80"], at=["10.102.0.1:80"])
    assert merged(service("east", ["10.1.0.7:80"]), west) == ""  # ours is headless


def test_what_a_cluster_says_replaces_what_it_said_before_and_nothing_else() -> None:
    east = service("east", ["10.1.0.7:80"], at=AT)
    before = service("west", ["10.2.0.7:80", "10.2.0.8:80"])
    after = service("west", ["10.2.0.9:80"])
    north = service("north", ["10.3.0.7:80"])
    assert merged(east, before, north) == (
        "10.101.0.1:80  10.1.0.7:80 east  10.2.0.7:80 west  10.2.0.8:80 west  10.3.0.7:80 north"
    )
    assert merged(east, after, north) == (
        "10.101.0.1:80  10.1.0.7:80 east  10.2.0.9:80 west  10.3.0.7:80 north"
    )
    assert merged(east, north) == "10.101.0.1:80  10.1.0.7:80 east  10.3.0.7:80 north"


def test_ports_meet_by_name_and_not_by_number() -> None:
    east = service("east", at=["10.101.0.1:80=http", "10.101.0.1:443=https"])
    west = service("west", ["10.2.0.7:9443=https", "10.2.0.7:9080=http", "10.2.0.7:80=other"])
    assert merged(east, west) == (
        "10.101.0.1:80  10.2.0.7:9080 west\n"
        "10.101.0.1:443  10.2.0.7:9443 west"
    )  # fmt: skip


def test_an_unnamed_port_meets_an_unnamed_one_only() -> None:
    east = service("east", ["10.1.0.7:80=http"], at=["10.101.0.1:80"])
    west = service("west", ["10.2.0.7:81", "10.2.0.7:80=http"])
    assert merged(east, west) == "10.101.0.1:80  10.2.0.7:81 west"


def test_several_names_may_stand_on_one_port() -> None:
    east = service("east", ["10.1.0.7:80=web"], at=["10.101.0.1:80=http", "10.101.0.1:80=web"])
    west = service("west", ["10.2.0.7:8080=http", "10.2.0.7:8080=web", "10.2.0.8:90=http"])
    assert merged(east, west) == (
        "10.101.0.1:80  10.1.0.7:80 east  10.2.0.7:8080 west  10.2.0.8:90 west"
    )


def test_a_preference_looks_at_all_names_of_a_port() -> None:
    at = ["10.101.0.1:80=http", "10.101.0.1:80=web"]
    east = service("east", ["10.1.0.7:80=web"], at=at, affinity="local")
    west = service("west", ["10.2.0.7:80=http"])
    assert merged(east, west) == "10.101.0.1:80  10.1.0.7:80 east  (10.2.0.7:80 west)"


def test_protocols_do_not_mix() -> None:
    east = service("east", at=["10.101.0.1:53/UDP=dns", "10.101.0.1:53/TCP=dns-tcp"])
    west = service("west", ["10.2.0.7:53/TCP=dns", "10.2.0.8:53/UDP=dns", "10.2.0.7:53=dns-tcp"])
    assert merged(east, west) == (
        "10.101.0.1:53/UDP  10.2.0.8:53/UDP west\n"
        "10.101.0.1:53  10.2.0.7:53 west"
    )  # fmt: skip


def test_each_frontend_has_the_backends_of_its_family() -> None:
    east = service("east", ["10.1.0.7:80", "[fd00:1::7]:80"], at=["10.101.0.1:80", "[fd00::1]:80"])
    west = service("west", ["[fd00:2::7]:80", "10.2.0.7:80"])
    assert merged(east, west) == (
        "10.101.0.1:80  10.1.0.7:80 east  10.2.0.7:80 west\n"
        "[fd00::1]:80  [fd00:1::7]:80 east  [fd00:2::7]:80 west"
    )


@pytest.mark.parametrize(
    ("affinity", "local", "remote", "expected"),
    [
        ("none", True, True, "10.1.0.7:80 east  10.2.0.7:80 west"),
        ("none", True, False, "10.1.0.7:80 east"),
        ("none", False, True, "10.2.0.7:80 west"),
        ("local", True, True, "10.1.0.7:80 east  (10.2.0.7:80 west)"),
        ("local", True, False, "10.1.0.7:80 east"),
        ("local", False, True, "10.2.0.7:80 west"),
        ("remote", True, True, "(10.1.0.7:80 east)  10.2.0.7:80 west"),
        ("remote", True, False, "10.1.0.7:80 east"),
        ("remote", False, True, "10.2.0.7:80 west"),
    ],
)
def test_affinity_prefers_one_side_while_it_lasts(
    affinity: str, local: bool, remote: bool, expected: str
) -> None:
    east = service("east", ["10.1.0.7:80"] if local else [], at=AT, affinity=affinity)
    west = service("west", ["10.2.0.7:80"] if remote else [])
    assert merged(east, west) == f"10.101.0.1:80  {expected}"


def test_whom_another_cluster_prefers_is_its_own_affair() -> None:
    east = service("east", ["10.1.0.7:80"], at=AT)
    west = service("west", ["10.2.0.7:80"], affinity="local")
    assert merged(east, west) == "10.101.0.1:80  10.1.0.7:80 east  10.2.0.7:80 west"


def owned_by(cluster: str, address: str) -> Callable[[IPAddress], Cidr | None]:
    claim = Cidr(ClusterName(cluster), ClusterId(IDS[cluster]), "node1", ())
    return lambda ip: claim if ip == ip_address(address) else None


@pytest.mark.parametrize(("owner", "is_there"), [("west", True), ("east", False), ("north", False)])
def test_a_backend_at_an_address_of_another_cluster_is_not_used(owner: str, is_there: bool) -> None:
    east = service("east", ["10.1.0.7:80"], at=AT)
    west = service("west", ["10.2.0.7:80"])
    shown = merged(east, west, owner=owned_by(owner, "10.2.0.7"))
    assert ("10.2.0.7:80 west" in shown) is is_there
    assert "10.1.0.7:80 east" in shown


def unrouted(address: str) -> Callable[[IPAddress], Cidr | None]:
    claim = Cidr(
        ClusterName("west"), ClusterId(IDS["west"]), "node1", (), is_node=True, unrouted="NAT"
    )
    return lambda ip: claim if ip == ip_address(address) else None


@pytest.mark.parametrize("affinity", ["none", "remote"])
@pytest.mark.parametrize(
    ("owner", "is_used"),
    [(owned_by("west", "10.2.0.7"), True), (nobody, False), (unrouted("10.2.0.7"), False)],
    ids=["a pod's", "nobody's", "a node's that is not routed"],
)
def test_with_encryption_a_backend_is_used_where_something_leads_to_its_node(
    owner: Callable[[IPAddress], Cidr | None], is_used: bool, affinity: str
) -> None:
    east = service("east", ["10.1.0.7:80"], at=AT, affinity=affinity)
    west = service("west", ["10.2.0.7:80"])
    ours = "(10.1.0.7:80 east)" if is_used and affinity == "remote" else "10.1.0.7:80 east"
    theirs = "10.2.0.7:80 west" if is_used else "(10.2.0.7:80 west)"
    expected = f"10.101.0.1:80  {ours}  {theirs}"
    assert merged(east, west, owner=owner, encrypts=True) == expected


def test_a_peer_cannot_take_the_address_of_our_own_pod() -> None:
    east = service("east", ["10.1.0.7:80"], at=AT, affinity="remote")
    west = service("west", ["10.1.0.7:80"])
    assert merged(east, west, owner=owned_by("east", "10.1.0.7")) == (
        "10.101.0.1:80  10.1.0.7:80 east"
    )


@given(st.permutations(["east", "west", "north"]))
def test_of_clusters_that_name_one_backend_the_same_one_has_it_whoever_was_first(
    order: list[str],
) -> None:
    said = {
        "east": service("east", ["192.0.2.1:80"], at=AT),
        "west": service("west", ["192.0.2.1:80", "192.0.2.2:80"]),
        "north": service("north", ["192.0.2.1:80", "192.0.2.2:80"]),
    }
    assert merged(*(said[name] for name in order)) == (
        "10.101.0.1:80  192.0.2.1:80 east  192.0.2.2:80 west"
    )
