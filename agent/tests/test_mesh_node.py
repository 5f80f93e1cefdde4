"""The MeshNode that an agent writes into a directory of manifests."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from agent.meshnode import keep_mesh_node
from agent.own import Known, OwnNode
from agent.settings import AgentSettings
from clustermesh.daemon import Daemon
from clustermesh.status import DaemonStatus, MeshNodeStatus
from clustermesh.tests.etcd_server import running, until

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def settings(directory: Path | None) -> AgentSettings:
    return AgentSettings(
        cluster_name="east",
        cluster_id=1,
        node_name="node1",
        local_etcd_config=Path("/nowhere"),
        clusters_dir=Path("/nowhere"),
        mesh_node_dir=directory,
    )


def shown(daemon: Daemon) -> MeshNodeStatus:
    return msgspec.convert(daemon.status(), DaemonStatus).mesh_node or MeshNodeStatus()


async def test_what_is_learned_of_the_node_is_written_where_the_apiserver_reads(
    tmp_path: Path,
) -> None:
    daemon, own = Daemon("agent", "1"), OwnNode(encrypts=False, has_kernel=False)
    file = tmp_path / "meshnode-node1.json"

    def spec() -> dict[str, object]:
        manifest = json.loads(file.read_bytes())
        assert (manifest["kind"], manifest["metadata"]) == ("MeshNode", {"name": "node1"})
        found: dict[str, object] = manifest["spec"]
        return found

    async with running(keep_mesh_node(settings(tmp_path), daemon, own, look_every=0.05)):
        await until(lambda: shown(daemon).written)
        assert spec() == {"bootID": _BOOT_ID}
        own.learn(msgspec.structs.replace(own.known, health_ips=("10.1.0.1",)))
        await until(lambda: spec() == {"bootID": _BOOT_ID, "healthIPs": ["10.1.0.1"]})

        written = file.stat()
        await asyncio.sleep(0.2)
        assert file.stat() == written, "nothing had changed"

        file.unlink()
        await until(file.exists)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


async def test_a_directory_that_is_not_there_is_named_and_waited_for(tmp_path: Path) -> None:
    daemon, directory = Daemon("agent", "1"), tmp_path / "manifests"
    async with running(
        keep_mesh_node(
            settings(directory), daemon, OwnNode(encrypts=False, has_kernel=False), look_every=0.05
        )
    ):
        await until(lambda: str(directory) in (shown(daemon).last_error or ""))
        directory.mkdir()
        await until(lambda: shown(daemon) == MeshNodeStatus(written=True))


async def test_nothing_is_written_before_all_is_known_that_was_written_before(
    tmp_path: Path,
) -> None:
    """Or others would miss the key, or the addresses to probe, each time that an agent starts."""
    daemon, own = Daemon("agent", "1"), OwnNode(encrypts=True, has_kernel=True)
    file = tmp_path / "meshnode-node1.json"
    file.write_text("as it was")
    async with running(keep_mesh_node(settings(tmp_path), daemon, own, look_every=0.05)):
        own.learn(msgspec.structs.replace(own.known, wireguard_public_key="key"))
        await asyncio.sleep(0.2)
        assert file.read_text() == "as it was"
        own.learn_addresses(("10.1.0.1",))
        await until(lambda: "10.1.0.1" in file.read_text())
        assert json.loads(file.read_bytes())["spec"]["wireguardPublicKey"] == "key"


@pytest.mark.parametrize(("encrypts", "has_kernel"), [(True, False), (False, True)])
async def test_what_there_will_be_is_waited_for(encrypts: bool, has_kernel: bool) -> None:
    own = OwnNode(encrypts=encrypts, has_kernel=has_kernel)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await own.complete()
    if has_kernel:
        own.learn_addresses(())
    else:
        own.learn(msgspec.structs.replace(own.known, wireguard_public_key="key"))
    await own.complete()


async def test_an_agent_without_a_place_for_it_writes_none() -> None:
    daemon = Daemon("agent", "1")
    await keep_mesh_node(settings(None), daemon, OwnNode(encrypts=False, has_kernel=False))
    assert "mesh_node" not in daemon.status()


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert msgspec.to_builtins(Known(boot_id="b")) == {"bootID": "b"}
