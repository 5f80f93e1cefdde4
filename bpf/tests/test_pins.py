"""What outlives the agent: maps, links and the connections that they carry."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from agent.kernel import inspect
from agent.kernel.datapath import Datapath
from agent.kernel.layouts import DropReason
from agent.kernel.pins import SCHEMA, Limits
from agent.targets.frontends import FrontendTarget
from clustermesh.errors import UserError

from .calls import call, keep, keep_calling, kept_connect, kept_peer, let_go
from .conftest import SMALL
from .lab import Node, address, fresh_cgroup, mounted_bpffs, node

pytestmark = pytest.mark.kernel

VIP = ("10.96.0.1", 80)
FRONTEND = address("10.96.0.1:80/TCP")
BACKENDS = (address("10.1.0.1:8080/TCP"), address("10.1.0.2:8080/TCP"))
LARGER = Limits(frontends=64, backends=512, ipcache=64)


def paths(bpffs: Path) -> set[str]:
    """What is pinned, two levels deep."""
    return {str(path.relative_to(bpffs / "clustermesh")) for path in bpffs.glob("clustermesh/*")}


def drops(bpffs: Path) -> dict[DropReason, int]:
    """What was dropped or refused, and why."""
    return {reason: count for reason, count in inspect.drops(bpffs).items() if count}


async def run_agent(bpffs: Path, cgroup: Path, limits: Limits = SMALL) -> bool:
    """Start, write what differs, attach, and stop. Returns whether it adopted the maps."""
    datapath = Datapath.open(bpffs, limits)
    target = FrontendTarget(datapath)
    if await target.actual() != {FRONTEND: BACKENDS}:
        assert await target.apply({FRONTEND: BACKENDS}, ()) == {}
    datapath.attach_sockets(cgroup)
    datapath.settle()
    datapath.close()
    return datapath.adopted


async def test_everything_goes_on_without_an_agent(bpffs: Path, cgroup: Path, pod: Node) -> None:
    await run_agent(bpffs, cgroup)
    assert pod.do(call, "TCP", *VIP).endswith("as 10.96.0.1:80")


async def test_the_next_agent_finds_the_maps_as_they_were(bpffs: Path, cgroup: Path) -> None:
    assert not await run_agent(bpffs, cgroup)
    before = inspect.frontends(bpffs)

    assert await run_agent(bpffs, cgroup)

    assert inspect.frontends(bpffs) == before  # the same generation: nothing was written
    assert before[0].backends == BACKENDS


async def test_no_connection_fails_while_agents_come_and_go(
    bpffs: Path, cgroup: Path, pod: Node
) -> None:
    await run_agent(bpffs, cgroup)
    calls = pod.start(keep_calling, *VIP, seconds=3.0)
    for limits in (SMALL, LARGER) * 5:  # every start but the first changes the schema
        await run_agent(bpffs, cgroup, limits)
    done, errors = calls()
    assert errors == []
    assert done > 100


async def test_another_size_is_filled_before_it_takes_over(
    bpffs: Path, cgroup: Path, pod: Node
) -> None:
    await run_agent(bpffs, cgroup, SMALL)
    pod.do(keep, "TCP", VIP[0])
    pod.do(kept_connect, *VIP)

    larger = Datapath.open(bpffs, LARGER)
    assert not larger.adopted
    assert larger.frontends.read() == (b"", b"")
    assert pod.do(call, "TCP", *VIP).endswith("as 10.96.0.1:80"), "served from the old maps"
    assert await FrontendTarget(larger).apply({FRONTEND: BACKENDS[:1]}, ()) == {}
    larger.attach_sockets(cgroup)
    assert pod.do(call, "TCP", *VIP) == "10.1.0.1:8080 as 10.96.0.1:80"
    larger.settle()
    larger.close()

    assert paths(bpffs) == {"links", "current", f"v{SCHEMA}-64-512-64-1"}
    assert pod.do(kept_peer) == "10.96.0.1:80", "connections are not forgotten"
    pod.do(let_go)


async def test_an_agent_that_dies_before_it_took_over_is_finished_by_the_next(
    bpffs: Path, cgroup: Path, pod: Node
) -> None:
    await run_agent(bpffs, cgroup, SMALL)
    Datapath.open(bpffs, LARGER).close()
    assert pod.do(call, "TCP", *VIP).endswith("as 10.96.0.1:80")
    assert not await run_agent(bpffs, cgroup, LARGER)
    assert paths(bpffs) == {"links", "current", f"v{SCHEMA}-64-512-64-1"}


async def test_drops_are_counted_on_across_sizes(bpffs: Path, cgroup: Path, pod: Node) -> None:
    for limits in (SMALL, LARGER):
        datapath = Datapath.open(bpffs, limits)
        await FrontendTarget(datapath).apply({FRONTEND: ()}, ())
        datapath.attach_sockets(cgroup)
        datapath.settle()
        datapath.close()
        assert pod.do(call, "TCP", *VIP) == "ECONNREFUSED"
    assert drops(bpffs) == {DropReason.NO_BACKEND: 2}


async def test_another_cgroup_gets_the_links(bpffs: Path, cgroup: Path, pod: Node) -> None:
    with fresh_cgroup("before") as before:
        await run_agent(bpffs, before)
        assert pod.do(call, "TCP", *VIP) == "ENETUNREACH"
        await run_agent(bpffs, cgroup)
        assert pod.do(call, "TCP", *VIP).endswith("as 10.96.0.1:80")


async def test_links_that_nobody_claims_are_removed(bpffs: Path, cgroup: Path) -> None:
    with node() as made:
        made.run("ip link add cm_vxlan type vxlan external dstport 8472")
        made.do(_attach_tunnel, bpffs)
        assert (bpffs / "clustermesh/links/tunnel_egress").exists()
        await run_agent(bpffs, cgroup)
        assert not (bpffs / "clustermesh/links/tunnel_egress").exists()


def test_a_tunnel_device_that_was_made_anew_gets_new_links(bpffs: Path) -> None:
    with node() as made:
        for times in (1, 2):
            made.run("ip link add cm_vxlan type vxlan external dstport 8472")
            made.do(_attach_tunnel, bpffs)
            made.run(
                "ip link set cm_vxlan arp off addrgenmode none up",
                "ip address add 10.1.0.5/32 dev cm_vxlan",
                "ip route add 10.2.0.0/16 dev cm_vxlan",
            )
            made.do(_send_into_tunnel)
            assert drops(bpffs)[DropReason.NO_TUNNEL] == times
            made.run("ip link del cm_vxlan")


async def test_remove_leaves_nothing(bpffs: Path, cgroup: Path, pod: Node) -> None:
    await run_agent(bpffs, cgroup)
    Datapath.remove(bpffs)
    assert not (bpffs / "clustermesh").exists()
    assert pod.do(call, "TCP", *VIP) == "ENETUNREACH"
    Datapath.remove(bpffs)  # again: no error


def test_mistakes_are_named(bpffs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no BPF file system \(mount -t bpf"):
        Datapath.open(tmp_path)
    with pytest.raises(UserError, match="is no BPF file system"):
        Datapath.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no maps of clustermesh"):
        inspect.frontends(bpffs)
    datapath = Datapath.open(bpffs, SMALL)
    with pytest.raises(UserError, match=r"is no cgroup2 directory \(findmnt"):
        datapath.attach_sockets(tmp_path)
    with pytest.raises(UserError, match="there is no directory"):
        datapath.attach_sockets(tmp_path / "nowhere")
    with node() as made, pytest.raises(OSError, match="No such device"):
        made.do(_attach_tunnel, bpffs)
    datapath.close()


def test_without_root_it_says_so() -> None:
    with tempfile.TemporaryDirectory() as directory:  # pytest's own are closed to others
        Path(directory).chmod(0o755)
        with mounted_bpffs(Path(directory) / "bpffs") as bpffs, node() as made:
            bpffs.chmod(0o777)
            with pytest.raises(UserError, match=r"not allowed to load .*run as root"):
                made.do(_open_as_nobody, bpffs)


# What follows runs on a node.


def _attach_tunnel(bpffs: Path) -> None:
    datapath = Datapath.open(bpffs, SMALL)
    devices = {name: index for index, name in socket.if_nameindex()}
    try:
        datapath.attach_tunnel(devices.get("cm_vxlan", 12345))
        datapath.settle()
    finally:
        datapath.close()


def _send_into_tunnel() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"to nobody", ("10.2.0.7", 7000))


def _open_as_nobody(bpffs: Path) -> None:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    Datapath.open(bpffs, SMALL)
