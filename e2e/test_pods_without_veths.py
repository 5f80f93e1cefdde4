"""
With the fast path on, pods that are not on veths of their own are reached by the plain routes.

Some CNIs give a pod a child of a device on which the node has one too (macvlan, ipvlan), one end of
a netkit, or a port of a switch that the node knows nothing of (SR-IOV). What the fast path does not
fit must go on as if there were none, in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import pytest

from agent.kernel import inspect
from agent.tests.netns import sh
from clustermesh.model import IPAddress
from clustermesh.sandbox.model import Addresses, Node, Pod, used
from clustermesh.sandbox.namespace import run_in_new

from .conftest import NewMesh
from .mesh import Mesh, eventually, same
from .reach import seen_by_tcp, seen_by_udp, sent_back

pytestmark = pytest.mark.vm

_PARENT: Final = "ip link add parent type veth peer name trunk"
_KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "macvlan": (
        _PARENT,
        "ip link add {node} link parent type macvlan mode bridge",
        "ip link add {pod} link parent type macvlan mode bridge",
    ),
    "ipvlan": (
        _PARENT,
        "ip link add {node} link parent type ipvlan mode l2",
        "ip link add {pod} link parent type ipvlan mode l2",
    ),
    "netkit": ("ip link add {node} type netkit", "ip link set nk0 name {pod}"),
    "veth": ("ip link add {node} type veth peer name {pod}",),
    "veth to a bridge here": (
        "ip link add parent type bridge mcast_snooping 0",
        "ip link add {node} type veth peer name trunk",
        "ip link add {pod} type veth peer name port",
        "ip link set trunk master parent",
        "ip link set port master parent up",
    ),
}
"""What makes the node's end of a link to a pod, and the pod's."""


@pytest.fixture(scope="module")
def mesh(new_mesh: NewMesh) -> Mesh:
    return new_mesh("devices", "--nodes=1", "--pods=2", "--agent=fast-path=on")


@pytest.mark.parametrize("kind", _KINDS)
def test_pods_are_reached_as_without_a_fast_path(mesh: Mesh, kind: str) -> None:
    """The first pods of the nodes. The second ones are on veths: when they are known, all are."""
    if not run_in_new(partial(has_kind, kind)):
        pytest.skip(f"this kernel has no {kind}")
    first, second = zip(*(node.pods for node in mesh.nodes), strict=True)
    for node in mesh.nodes:
        relink(mesh, node, node.pods[0], kind)
    call_each_other(mesh, *first)
    for node in mesh.nodes:
        relink(mesh, node, node.pods[1], "veth")
    call_each_other(mesh, *second)
    for node in mesh.nodes:
        fast = node.pods if kind == "veth" else node.pods[1:]
        eventually(f"the pods of {node.place} are known", partial(are_fast, mesh, node, fast))
    call_each_other(mesh, *first)
    call_each_other(mesh, *second)
    assert [mesh.troubles(node.place) for node in mesh.nodes] == ["", ""]


def call_each_other(mesh: Mesh, *pods: Pod) -> None:
    """Two pods, over both families, in packets of every size."""
    for client, server in (pods, pods[::-1]):
        namespace = mesh.world.sandbox.namespace(client)
        for own, address in zip(both(client.addresses), both(server.addresses), strict=True):
            assert seen_by_tcp(namespace, address) == str(own)
            assert seen_by_udp(namespace, address, 9000) == str(own)
            assert sent_back(namespace, address, 1 << 20) == 1 << 20


def relink(mesh: Mesh, node: Node, pod: Pod, kind: str) -> None:
    """Give a pod another link to its node, with the addresses that it had."""
    inside = mesh.world.sandbox.namespace(pod)
    for gone in (pod.host_device, *(["parent"] if pod is node.pods[0] else [])):
        mesh.attempt(node.place, "ip", "link", "del", gone)
    for line in _KINDS[kind]:
        mesh.run(node.place, *line.format(node=pod.host_device, pod="made").split())
    lines = [f"ip link set made netns {inside} name eth0"]
    if any("parent" in line for line in _KINDS[kind]):
        lines += ["ip link set trunk up", "ip link set parent up"]
    lines += [f"ip link set {pod.host_device} up"]
    for ip, gateway in zip(both(pod.addresses), both(node.gateways), strict=True):
        lines += [f"ip address add {gateway}/{gateway.max_prefixlen} dev {pod.host_device}"]
        lines += [f"ip route add {ip} dev {pod.host_device}"]
    for line in lines:
        mesh.run(node.place, *line.split())
    lines = ["ip link set eth0 up"]
    for ip, gateway in zip(both(pod.addresses), both(node.gateways), strict=True):
        lines += [f"ip address add {ip}/{ip.max_prefixlen} dev eth0"]
        lines += [f"ip route add {gateway} dev eth0"]
        lines += [f"ip -{ip.version} route add default via {gateway}"]
    for line in lines:
        mesh.run(pod.place, *line.split())


def both(addresses: Addresses) -> list[IPAddress]:
    """Addresses of either family."""
    return used(addresses, (4, 6))


def are_fast(mesh: Mesh, node: Node, pods: Sequence[Pod]) -> bool:
    """Whether just these are on the fast path, with a program on as many devices."""
    bpffs = mesh.world.sandbox.bpffs(node)
    wanted = [ip for pod in pods for ip in both(pod.addresses)]
    assert same(dict.fromkeys(inspect.pods(bpffs)), dict.fromkeys(wanted))
    attached = [link.name for link in (bpffs / "clustermesh/links").glob("pod_ingress-*")]
    assert len(attached) == len(pods), attached
    return True


def has_kind(kind: str) -> bool:
    """Whether the kernel has such devices."""
    try:
        for line in _KINDS[kind]:
            sh(line.format(node="one", pod="other"))
    except AssertionError:
        return False
    return True
