"""Filters stand in for links where interfaces have none: shown on a kernel that may have both."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

import agent.kernel.datapath as datapath_module
from agent.kernel import links
from agent.kernel.bpf import Map, Object
from agent.kernel.contents import read_drops
from agent.kernel.layouts import DropReason
from agent.kernel.links import AttachType

from .lab import Node, node

pytestmark = [pytest.mark.kernel, pytest.mark.vm]

_TUNNEL: Final = Path(datapath_module.__file__).with_name("objects") / "tunnel.bpf.o"


@pytest.fixture
def host() -> Iterator[Node]:
    """A node with two tunnel devices: to 10.1.0.0/16 by the first, to 10.2.0.0/16 by the second."""
    with node() as made:
        for number in (1, 2):
            made.run(
                f"ip link add tunnel{number} type vxlan external dstport 847{number}",
                f"ip link set tunnel{number} arp off addrgenmode none up",
                f"ip address add 10.0.0.{number}/32 dev tunnel{number}",
                f"ip route add 10.{number}.0.0/16 dev tunnel{number}",
            )
        yield made


def test_the_next_agent_replaces_the_program_in_place(bpffs: Path, host: Node) -> None:
    for _ in range(2):
        host.do(attach, bpffs, "tunnel1")
        assert host.do(filters, "tunnel1") == ["tunnel_egress"]
        assert host.do(dropped, bpffs, "10.1.0.7") == 1


def test_a_filter_goes_to_the_device_that_is_named_last(bpffs: Path, host: Node) -> None:
    host.do(attach, bpffs, "tunnel1")
    host.do(attach, bpffs, "tunnel2")
    assert host.do(filters, "tunnel1") == []
    assert host.do(filters, "tunnel2") == ["tunnel_egress"]
    assert host.do(dropped, bpffs, "10.2.0.7") == 1


def test_detaching_leaves_other_filters(bpffs: Path, host: Node) -> None:
    host.do(attach, bpffs, "tunnel1", "tunnel_ingress")
    host.do(attach, bpffs, "tunnel1")
    assert host.do(filters, "tunnel1") == ["tunnel_egress", "tunnel_ingress"]
    host.do(links.detach, bpffs / "tunnel_egress")
    assert host.do(filters, "tunnel1") == ["tunnel_ingress"]
    assert paths(bpffs) == {"tunnel_ingress"}


@pytest.mark.parametrize("gone", ["ip link del tunnel1", "tc qdisc del dev tunnel1 clsact"])
def test_what_is_gone_already_is_detached(bpffs: Path, host: Node, gone: str) -> None:
    host.do(attach, bpffs, "tunnel1")
    host.run(gone)
    host.do(links.detach, bpffs / "tunnel_egress")
    host.do(links.detach, bpffs / "tunnel_egress")


def test_a_device_that_is_not_there_is_named_as_such(bpffs: Path, host: Node) -> None:
    with pytest.raises(OSError, match="tunnel_egress: attach: No such device"):
        host.do(attach, bpffs, None)


def paths(bpffs: Path) -> set[str]:
    """What stands in the place of pins."""
    return {path.name for path in bpffs.iterdir() if path.is_symlink()}


# What follows runs on the node.


def attach(bpffs: Path, device: str | None, name: str = "tunnel_egress") -> None:
    """Do as an agent that starts: programs are loaded afresh."""
    shift = struct.pack("=I", 16)
    index = socket.if_nametoindex(device) if device else 12345
    tunnel = Object(_TUNNEL, bpffs, settings={"identity_shift": shift}, max_entries={})
    with closing(tunnel):
        links.attach_filter(tunnel.program(name), index, AttachType.TCX_EGRESS, bpffs / name)


def filters(device: str) -> list[str]:
    """What sees the packets that leave by the device, in order."""
    command = ["tc", "filter", "show", "dev", device, "egress"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.findall(r" name (\w+)", said)


def dropped(bpffs: Path, destination: str) -> int:
    """How often the program has dropped a packet to this address."""
    before = _no_tunnel(bpffs)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"to nobody", (destination, 7000))
    return _no_tunnel(bpffs) - before


def _no_tunnel(bpffs: Path) -> int:
    with closing(Map.pinned(bpffs / "drops", read_only=True)) as drops:
        return read_drops(drops)[DropReason.NO_TUNNEL]
