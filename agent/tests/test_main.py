"""The agent as a whole, without a kernel: what it says of itself."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import msgspec

from agent.main import serve_node
from agent.settings import AgentSettings
from clustermesh.daemon import Daemon
from clustermesh.kinds import LOCAL_SERVICES
from clustermesh.model import ObjectName, Port, Protocol, Service
from clustermesh.status import DaemonStatus
from clustermesh.tests.etcd_server import EtcdServer, running, until
from clustermesh.tests.peer import Peer, peer_in


def settings_of(server: EtcdServer, directory: Path) -> AgentSettings:
    """An agent of the cluster east, which `server` is the etcd of."""
    cert, key = server.pair("admin")
    etcd = directory / "etcd.yaml"
    etcd.write_text(
        f"endpoints: [{server.url}]\n"
        f"trusted-ca-file: {server.certs.path('ca', 'crt')}\n"
        f"cert-file: {cert}\nkey-file: {key}\n"
    )
    clusters = directory / "clusters"
    clusters.mkdir()
    return AgentSettings(
        cluster_name="east",
        cluster_id=1,
        node_name="node1",
        local_etcd_config=etcd,
        clusters_dir=clusters,
        state_dir=directory / "state",
        datapath="none",
    )


async def publish(east: Peer, name: str, *ips: str) -> None:
    """Let a service have these addresses."""
    row = Service(
        east.name,
        east.id,
        ObjectName("default", name),
        {ip_address(ip): {"http": Port(Protocol.TCP, 80)} for ip in ips},
        {},
    )
    await east.put_row(LOCAL_SERVICES, row.name, row)


async def test_of_two_services_with_one_address_the_second_is_named(
    etcd_server: EtcdServer, tmp_path: Path
) -> None:
    daemon = Daemon("agent", "1")

    def conflicts() -> list[str]:
        return msgspec.convert(daemon.status(), DaemonStatus).conflicts

    def shown() -> dict[str, str | None]:
        rows = daemon.tables["services"].rows()
        return {row["service"]: row.get("conflict") for row in rows}

    async with (
        peer_in(etcd_server, "east", 1) as east,
        running(serve_node(settings_of(etcd_server, tmp_path), daemon)),
    ):
        await publish(east, "web", "10.96.0.1")
        await east.publish()
        await east.put(LOCAL_SERVICES.canary(east.name), b"now")
        await until(lambda: daemon.status().get("ready") is True)
        await until(lambda: len(daemon.tables["frontends"].table) == 1)
        assert conflicts() == []

        await publish(east, "shop", "10.96.0.2", "10.96.0.1")
        cause = "10.96.0.1:80/TCP is the address of default/web"
        await until(lambda: conflicts() == [f"service default/shop: {cause}"])
        assert shown() == {"default/web": None, "default/shop": cause}

        await publish(east, "web", "10.96.0.3")
        await until(lambda: conflicts() == [])
        assert shown() == {"default/web": None, "default/shop": None}
