"""
The network of a sandbox, made for real: namespaces, links, addresses and routes.

It is what machines and a CNI would have made. Pods sit on a routed link of their own, as with the
`ptp` plugin, and the nodes of one cluster have routes to each other's pods in the main table.
Between clusters there is nothing but the underlay: the rest is the agents' work.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from clustermesh.errors import UserError
from clustermesh.model import IPAddress, IPNetwork

from .model import (
    ROOT,
    ROUTER,
    UNDERLAY_NETWORKS,
    Cluster,
    Control,
    Node,
    Pod,
    Sandbox,
    sandbox,
    used,
)
from .namespace import mount, run_in_new, run_inside
from .remains import cgroup_mount, down

_IFA_F_NODAD: Final = 0x02
_RT_SCOPE_LINK: Final = 253
_SYSCTL: Final = Path("/proc/sys/net")
_PARAMETERS: Final = "sandbox.json"
_ROUTER_MAC: Final = "02:00:00:00:00:fe"


def up(wanted: Sandbox) -> None:
    """
    Make the namespaces, cgroups, BPF file systems and network of `wanted`.

    What an earlier run of the same name left is taken down first.

    Raises:
        UserError: this machine or user cannot have sandboxes.
    """
    if os.geteuid() != 0:
        raise UserError("a sandbox needs root", hint="use sudo")
    down(wanted.name, wanted.root)
    try:
        _make_directories(wanted)
        _make_network(wanted)
    except (OSError, NetlinkError) as error:
        down(wanted.name, wanted.root)
        raise UserError(
            f"sandbox {wanted.name} cannot be made here: {error}",
            hint="it needs IPv6, bridges, veth, the BPF file system and a writable cgroup2;"
            " in a container, --privileged",
        ) from error


def load(name: str, root: Path = ROOT) -> Sandbox:
    """
    The sandbox of that name, as it was made.

    Raises:
        UserError: there is none.
    """
    try:
        parameters = json.loads((root / name / _PARAMETERS).read_text())
    except FileNotFoundError:
        hint = f"clustermesh sandbox up --name {name}"
        raise UserError(f"there is no sandbox {name}", hint=hint) from None
    return sandbox(**parameters, root=root)


def _make_directories(wanted: Sandbox) -> None:
    wanted.namespace(None).parent.mkdir(parents=True)
    cgroups = cgroup_mount()
    for place in wanted.places():
        wanted.home(place).mkdir(parents=True)
        (cgroups / wanted.cgroup_of(place)).mkdir(parents=True, exist_ok=True)
        if isinstance(place, Node):
            wanted.bpffs(place).mkdir()
            mount("bpf", wanted.bpffs(place), "bpf")
    names = (
        *("name", "clusters", "nodes", "pods"),
        *("routing", "encryption", "api", "family", "agent", "mirror"),
    )
    parameters = {name: getattr(wanted, name) for name in names}
    (wanted.directory / _PARAMETERS).write_text(json.dumps(parameters))


def _make_network(wanted: Sandbox) -> None:
    _make_namespace(wanted.namespace(None), forwarding=wanted.routing == "native")
    for place in wanted.places():
        _make_namespace(wanted.namespace(place), forwarding=isinstance(place, Node))
    _inside(wanted.namespace(None), partial(_join_underlay, wanted=wanted))
    if wanted.routing == "native":
        _inside(wanted.namespace(None), partial(_route_everything, wanted=wanted))
    for cluster in wanted.members:
        control = cluster.control
        _inside(
            wanted.namespace(control), partial(_address_machine, cluster=cluster, machine=control)
        )
        for node in cluster.nodes:
            fit = partial(_fit_node, wanted=wanted, cluster=cluster, node=node)
            _inside(wanted.namespace(node), fit)
            for pod in node.pods:
                _inside(
                    wanted.namespace(pod), partial(_fit_pod, cluster=cluster, node=node, pod=pod)
                )


def _make_namespace(path: Path, *, forwarding: bool = False) -> None:
    def prepare() -> None:
        # An address is there at once, not after a second of looking for a double.
        for scope in ("all", "default"):
            (_SYSCTL / f"ipv6/conf/{scope}/accept_dad").write_text("0")
        if forwarding:
            (_SYSCTL / "ipv4/ip_forward").write_text("1")
            (_SYSCTL / "ipv6/conf/all/forwarding").write_text("1")
        with IPRoute() as ip:
            ip.link("set", index=1, state="up")

    run_in_new(prepare, keep=path)


def _inside(namespace: Path, function: Callable[[Any], None]) -> None:
    def body() -> None:
        with IPRoute() as ip:
            function(ip)

    run_inside(namespace, body)


def _join_underlay(ip: Any, wanted: Sandbox) -> None:
    """A bridge, and a link from it to every machine."""
    # Without multicast snooping: it would hold back neighbour discovery until there is a querier.
    # With an address: a bridge takes that of some port, and another one when a port comes or goes.
    switch = {"kind": "bridge", "br_mcast_snooping": 0, "address": _ROUTER_MAC}
    ip.link("add", ifname="bridge", **switch)
    bridge = ip.link_lookup(ifname="bridge")[0]
    ip.link("set", index=bridge, state="up")
    for cluster in wanted.members:
        machines: list[Node | Control] = [cluster.control, *cluster.nodes]
        for machine in machines:
            _link(ip, machine.port, wanted.namespace(machine))
            port = ip.link_lookup(ifname=machine.port)[0]
            ip.link("set", index=port, master=bridge, state="up")


def _route_everything(ip: Any, wanted: Sandbox) -> None:
    """Let the underlay be a router that knows where the pods of all clusters are."""
    (_SYSCTL / "ipv4/conf/all/send_redirects").write_text("0")  # everybody is on one segment
    bridge = ip.link_lookup(ifname="bridge")[0]
    for address, network in zip(
        used(ROUTER, wanted.versions), used(UNDERLAY_NETWORKS, wanted.versions), strict=True
    ):
        _add_address(ip, bridge, address, network.prefixlen)
    for cluster in wanted.members:
        for node in cluster.nodes:
            for cidr, via in zip(
                cluster.used(node.pod_cidrs), cluster.used(node.addresses), strict=True
            ):
                _add_route(ip, cidr, gateway=str(via))


def _address_machine(ip: Any, cluster: Cluster, machine: Node | Control) -> None:
    eth0 = _up(ip, "eth0")
    for address, network in zip(
        cluster.used(machine.addresses), cluster.used(UNDERLAY_NETWORKS), strict=True
    ):
        _add_address(ip, eth0, address, network.prefixlen)


def _fit_node(ip: Any, wanted: Sandbox, cluster: Cluster, node: Node) -> None:
    """The node's own address, links to its pods, and routes to the pods of its cluster."""
    _address_machine(ip, cluster, node)
    for pod in node.pods:
        _link(ip, pod.host_device, wanted.namespace(pod))
        device = _up(ip, pod.host_device)
        for gateway, address in zip(
            cluster.used(node.gateways), cluster.used(pod.addresses), strict=True
        ):
            _add_address(ip, device, gateway, gateway.max_prefixlen)
            _add_route(ip, ip_network(address), oif=device)
    for other in cluster.nodes:
        if other.name == node.name:
            continue
        for cidr, via in zip(
            cluster.used(other.pod_cidrs), cluster.used(other.addresses), strict=True
        ):
            _add_route(ip, cidr, gateway=str(via))
    if wanted.routing == "native":
        for router in cluster.used(ROUTER):
            _add_route(ip, _everything(router), gateway=str(router))


def _fit_pod(ip: Any, cluster: Cluster, node: Node, pod: Pod) -> None:
    """The pod's addresses, and everything else by way of its node."""
    eth0 = _up(ip, "eth0")
    for address, gateway in zip(
        cluster.used(pod.addresses), cluster.used(node.gateways), strict=True
    ):
        _add_address(ip, eth0, address, address.max_prefixlen)
        _add_route(ip, ip_network(gateway), oif=eth0)
        _add_route(ip, _everything(gateway), oif=eth0, gateway=str(gateway))


def _link(ip: Any, name: str, namespace: Path) -> None:
    """A link whose other end is `eth0` in `namespace`."""
    with _opened(namespace) as descriptor:
        ip.link("add", ifname=name, kind="veth", peer={"ifname": "eth0", "net_ns_fd": descriptor})


def _up(ip: Any, name: str) -> int:
    index = int(ip.link_lookup(ifname=name)[0])
    ip.link("set", index=index, state="up")
    return index


def _add_address(ip: Any, device: int, address: IPAddress, length: int) -> None:
    family, flags = (AF_INET, 0) if address.version == 4 else (AF_INET6, _IFA_F_NODAD)
    ip.addr("add", index=device, family=family, address=str(address), prefixlen=length, flags=flags)


def _add_route(ip: Any, to: IPNetwork, **way: Any) -> None:
    """A route by `oif`, `gateway`, or both."""
    if to.version == 4 and "gateway" not in way:
        way["scope"] = _RT_SCOPE_LINK
    ip.route("add", family=AF_INET if to.version == 4 else AF_INET6, dst=str(to), **way)


def _everything(like: IPAddress) -> IPNetwork:
    return ip_network("0.0.0.0/0" if like.version == 4 else "::/0")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
