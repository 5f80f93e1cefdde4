"""
What a sandbox consists of: names, addresses and places, from a handful of numbers. Pure.

    underlay      172.30.0.0/16, fd00:30::/64: a bridge that all nodes of all clusters are on;
                  with native routing also a router, 172.30.0.254, which knows where all pods are
    clusterC      services 10.(100+C).0.0/16, fd00:110:C::/112
      control     172.30.C.254: its etcd and its apiserver
      nodeN       172.30.C.N, pods 10.C.N.0/24, fd00:10:C:N::/64
        podP      10.C.N.(10+P), fd00:10:C:N::(10+P)

IPv6 addresses carry the same numbers as they are written, so that a person sees whose they are.
Sandboxes use the same addresses side by side: each is a world of namespaces of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple, TypeAlias, overload

import msgspec

from clustermesh.errors import UserError
from clustermesh.model import ClusterId, ClusterName, IPAddress, IPNetwork

ROOT: Final = Path("/run/clustermesh")
CGROUP: Final = PurePosixPath("clustermesh-sandbox")  # below the mount of cgroup2
UNDERLAY: Final = "underlay"

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")
_SETTING: Final = re.compile(r"(?:([^:=]+):)?([a-z][-a-z]*=.*)", re.DOTALL)
_LIMITS: Final = {"clusters": 99, "nodes": 200, "pods": 200}  # what the addresses have room for


class Addresses(NamedTuple):
    """An address of each family."""

    v4: IPv4Address
    v6: IPv6Address


class Networks(NamedTuple):
    """A network of each family."""

    v4: IPv4Network
    v6: IPv6Network


FAMILIES: Final[Mapping[str, tuple[int, ...]]] = {"4": (4,), "6": (6,), "dual": (4, 6)}
"""IP versions by what a user calls them."""


UNDERLAY_NETWORKS: Final = Networks(IPv4Network("172.30.0.0/16"), IPv6Network("fd00:30::/64"))
ROUTER: Final = Addresses(IPv4Address("172.30.0.254"), IPv6Address("fd00:30::254"))
"""Of the underlay, where that knows pod networks: with native routing."""


class Pod(msgspec.Struct, frozen=True):
    """A network namespace with an echo server in it."""

    cluster: ClusterName
    node: str
    name: str
    addresses: Addresses

    @property
    def place(self) -> str:
        """Its name in the sandbox."""
        return f"{self.cluster}/{self.node}/{self.name}"

    @property
    def host_device(self) -> str:
        """The node's end of the pod's link; its own end is `eth0`."""
        return self.name


class Node(msgspec.Struct, frozen=True):
    """A network namespace on the underlay, with pods behind it and an agent in it."""

    cluster: ClusterName
    name: str
    addresses: Addresses
    pod_cidrs: Networks
    pods: tuple[Pod, ...]
    port: str  # the underlay's end of its link

    @property
    def place(self) -> str:
        """Its name in the sandbox."""
        return f"{self.cluster}/{self.name}"

    @property
    def gateways(self) -> Addresses:
        """What its pods send everything to: the first addresses of the pod CIDRs."""
        return Addresses(self.pod_cidrs.v4[1], self.pod_cidrs.v6[1])


class Control(msgspec.Struct, frozen=True):
    """A network namespace on the underlay, for a cluster's etcd, apiserver and Kubernetes."""

    cluster: ClusterName
    addresses: Addresses
    port: str  # the underlay's end of its link

    @property
    def place(self) -> str:
        """Its name in the sandbox."""
        return f"{self.cluster}/control"


class Cluster(msgspec.Struct, frozen=True):
    """A cluster: services, a control plane, and nodes."""

    name: ClusterName
    id: ClusterId
    service_cidrs: Networks
    control: Control
    nodes: tuple[Node, ...]
    versions: tuple[int, ...]  # of IP, inside and outside; what has another one is not used

    @overload
    def used(self, pair: Addresses) -> list[IPAddress]: ...
    @overload
    def used(self, pair: Networks) -> list[IPNetwork]: ...
    def used(self, pair: Addresses | Networks) -> Sequence[IPAddress | IPNetwork]:
        """Those of a pair of addresses or networks that this cluster uses."""
        return used(pair, self.versions)

    @property
    def address(self) -> IPAddress:
        """At which others reach its control plane."""
        return self.used(self.control.addresses)[0]


@overload
def used(pair: Addresses, versions: Sequence[int]) -> list[IPAddress]: ...
@overload
def used(pair: Networks, versions: Sequence[int]) -> list[IPNetwork]: ...
def used(pair: Addresses | Networks, versions: Sequence[int]) -> Sequence[IPAddress | IPNetwork]:
    """Those of a pair of addresses or networks that are of some versions of IP."""
    return [one for one in pair if one.version in versions]


Place: TypeAlias = Node | Control | Pod


class Sandbox(msgspec.Struct, frozen=True, dict=True):
    """Clusters on one machine. Everything else follows from these."""

    name: str = "default"
    clusters: int = 2
    nodes: int = 2  # of each cluster
    pods: int = 2  # of each node
    routing: str = "tunnel"
    encryption: str = "none"
    api: str = "dir"  # the Kubernetes side: manifests in a directory, or a real API server (kube)
    family: str = "dual"
    agent: tuple[str, ...] = ()  # more settings of agents: NAME=VALUE, CLUSTER:NAME=VALUE
    mirror: bool = False  # agents read their own etcd only, where the others are copied
    root: Path = ROOT

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions of IP that there are."""
        return FAMILIES[self.family]

    @property
    def directory(self) -> Path:
        """All that is on disk, and every mount: namespaces too are found below it."""
        return self.root / self.name

    @property
    def cgroup(self) -> PurePosixPath:
        """Of all its processes, below the mount of cgroup2."""
        return CGROUP / self.name

    @cached_property
    def members(self) -> tuple[Cluster, ...]:
        """The clusters."""
        return tuple(
            _cluster(c, self.nodes, self.pods, self.versions) for c in range(1, self.clusters + 1)
        )

    def settings(self, cluster: Cluster) -> Iterator[str]:
        """More settings of the agents of a cluster: NAME=VALUE."""
        for setting in self.agent:
            of, name_and_value = _parse_setting(setting)
            if of in {None, cluster.name}:
                yield name_and_value

    def places(self) -> Iterator[Place]:
        """Every namespace but the underlay: control, nodes and pods, cluster by cluster."""
        for cluster in self.members:
            yield cluster.control
            for node in cluster.nodes:
                yield node
                yield from node.pods

    def cluster(self, name: str) -> Cluster:
        """
        The cluster called `name`.

        Raises:
            UserError: there is none.
        """
        for cluster in self.members:
            if cluster.name == name:
                return cluster
        names = ", ".join(cluster.name for cluster in self.members)
        raise UserError(f"there is no {name} in sandbox {self.name}", hint=f"there are {names}")

    def find(self, place: str) -> Place:
        """
        The node, pod or control plane called `place`, such as `cluster1/node1/pod1`.

        Raises:
            UserError: there is none.
        """
        for known in self.places():
            if known.place == place:
                return known
        names = ", ".join(node.place for node in self.cluster(place.partition("/")[0]).nodes)
        raise UserError(
            f"there is no {place} in sandbox {self.name}",
            hint=f"there are {names}, on each pod1-pod{self.pods}, and CLUSTER/control",
        )

    def home(self, place: Place) -> Path:
        """The directory of a place: logs, pid files, settings."""
        return self.directory / place.place

    def namespace(self, place: Place | None) -> Path:
        """The file that holds the network namespace; None is the underlay."""
        return self.directory / (place.place if place else UNDERLAY) / "netns"

    def bpffs(self, node: Node) -> Path:
        """Where the node's BPF file system is mounted."""
        return self.home(node) / "bpffs"

    def state(self, node: Node) -> Path:
        """What the node's agent keeps over a restart."""
        return self.home(node) / "state"

    def sockets(self, node: Node) -> Path:
        """Where the node's wireguard-go listens, if it has one."""
        return self.home(node) / "wireguard"

    def cgroup_of(self, place: Place) -> PurePosixPath:
        """Of the processes of a place, below the mount of cgroup2. A pod's is below its node's."""
        return self.cgroup / place.place


def sandbox(
    name: str = "default",
    *,
    clusters: int = 2,
    nodes: int = 2,
    pods: int = 2,
    routing: str = "tunnel",
    encryption: str = "none",
    api: str = "dir",
    family: str = "dual",
    agent: Iterable[str] = (),
    mirror: bool = False,
    root: Path = ROOT,
) -> Sandbox:
    """
    A sandbox, if there can be such a one.

    Raises:
        UserError: it says what is out of range.
    """
    parse_name(name)
    for what, number in (("clusters", clusters), ("nodes", nodes), ("pods", pods)):
        least = 0 if what == "pods" else 1
        if not least <= number <= _LIMITS[what]:
            raise UserError(
                f"{number} {what} are out of range", hint=f"choose {least}-{_LIMITS[what]}"
            )
    if routing not in {"tunnel", "direct", "native"}:
        raise UserError(f"{routing!r} is no routing", hint="choose tunnel, direct or native")
    if encryption not in {"none", "wireguard"}:
        raise UserError(f"{encryption!r} is no encryption", hint="choose none or wireguard")
    if api not in {"dir", "kube"}:
        raise UserError(f"{api!r} is no Kubernetes API", hint="choose dir or kube")
    if family not in FAMILIES:
        raise UserError(f"{family!r} is no family", hint=f"choose {', '.join(FAMILIES)}")
    if family != "dual" and api == "kube":
        raise UserError(f"--family {family} is not for real API servers", hint="use --api dir")
    made = Sandbox(
        *(name, clusters, nodes, pods, routing, encryption, api, family),
        *(tuple(agent), mirror, root),
    )
    for setting in made.agent:
        of, _ = _parse_setting(setting)
        if of is not None:
            made.cluster(of)
    return made


def _parse_setting(text: str) -> tuple[str | None, str]:
    """The cluster whose agents have a setting, None for all, and the setting: NAME=VALUE."""
    found = _SETTING.fullmatch(text)
    if not found:
        raise UserError(
            f"{text!r} is no setting of an agent", hint="write NAME=VALUE, or CLUSTER:NAME=VALUE"
        )
    return found[1], found[2]


def parse_name(name: str) -> str:
    """
    `name`, if a sandbox may be called so: it becomes the name of directories.

    Raises:
        UserError: it says what is allowed.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name for a sandbox",
            hint="use at most 32 of a-z, 0-9 and -, not - at an end",
        )
    return name


def _cluster(c: int, nodes: int, pods: int, versions: tuple[int, ...]) -> Cluster:
    name = ClusterName(f"cluster{c}")
    return Cluster(
        name=name,
        id=ClusterId(c),
        service_cidrs=Networks(
            IPv4Network(f"10.{100 + c}.0.0/16"), IPv6Network(f"fd00:110:{c}::/112")
        ),
        control=Control(name, _underlay_addresses(c, 254), f"c{c}control"),
        nodes=tuple(_node(name, c, n, pods) for n in range(1, nodes + 1)),
        versions=versions,
    )


def _node(cluster: ClusterName, c: int, n: int, pods: int) -> Node:
    cidrs = Networks(IPv4Network(f"10.{c}.{n}.0/24"), IPv6Network(f"fd00:10:{c}:{n}::/64"))
    name = f"node{n}"
    return Node(
        cluster=cluster,
        name=name,
        addresses=_underlay_addresses(c, n),
        pod_cidrs=cidrs,
        pods=tuple(
            Pod(cluster, name, f"pod{p}", _pod_addresses(c, n, 10 + p)) for p in range(1, pods + 1)
        ),
        port=f"c{c}n{n}",
    )


def _underlay_addresses(c: int, n: int) -> Addresses:
    return Addresses(IPv4Address(f"172.30.{c}.{n}"), IPv6Address(f"fd00:30::{c}:{n}"))


def _pod_addresses(c: int, n: int, p: int) -> Addresses:
    return Addresses(IPv4Address(f"10.{c}.{n}.{p}"), IPv6Address(f"fd00:10:{c}:{n}::{p}"))
