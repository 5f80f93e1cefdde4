"""The MTU between clusters is found, not set: it follows what the nodes' devices say."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from clustermesh.model import IPAddress

from .conftest import NewMesh
from .mesh import Mesh, eventually
from .reach import seen_by_udp, sent_back, told_mtu

NARROW = 1400
ROOM = {"tunnel": NARROW - 50, "direct": NARROW}


@pytest.fixture(scope="module", params=ROOM)
def mesh(request: pytest.FixtureRequest, new_mesh: NewMesh) -> Mesh:
    return new_mesh(f"mtu-{request.param}", "--nodes=1", "--pods=1", f"--routing={request.param}")


@pytest.fixture
def narrow(mesh: Mesh) -> Iterator[int]:
    """Have a narrow path between nodes for a while; what then fits into what."""
    for mtu in (NARROW, 1500):
        for node in mesh.nodes:
            mesh.run(node.place, "ip", "link", "set", "eth0", "mtu", str(mtu))
        if mtu == NARROW:
            yield ROOM[mesh.world.sandbox.routing]


@pytest.mark.parametrize("family", [4, 6])
def test_a_path_that_becomes_narrower_is_followed_at_once(
    mesh: Mesh, narrow: int, family: int
) -> None:
    """Devices and routes take it over, and who sends too much is told."""
    here, there = mesh.nodes
    pod, server = here.pods[0], there.pods[0].addresses[family == 6]
    for client in (pod, here):
        namespace = mesh.world.sandbox.namespace(client)
        eventually(f"{client.place} knows", partial(_is_told, namespace, server, narrow))
        own = pod.addresses if client is pod else here.gateways
        assert seen_by_udp(namespace, server, 9000) == str(own[family == 6])
        assert sent_back(namespace, server, 1 << 20) == 1 << 20


def _is_told(namespace: Path, server: IPAddress, wanted: int) -> bool:
    assert told_mtu(namespace, server) == wanted
    return True
