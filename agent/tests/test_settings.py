from __future__ import annotations

from pathlib import Path

import pytest

from agent.settings import AgentSettings
from clustermesh.errors import UserError
from clustermesh.model import ClusterName
from clustermesh.settings import read_settings

NEEDED = {
    "--cluster-name": "east",
    "--cluster-id": "1",
    "--node-name": "node1",
    "--local-etcd-config": "/etc/clustermesh/local.yaml",
    "--clusters-dir": "/etc/clustermesh/clusters",
}


def read(**flags: str) -> AgentSettings:
    given = NEEDED | {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
    arguments = [word for flag in given.items() for word in flag]
    return read_settings(AgentSettings, name="clustermesh-agent", version="1", arguments=arguments)


def test_what_must_be_said_is_enough() -> None:
    assert read() == AgentSettings(
        cluster_name="east",
        cluster_id=1,
        node_name="node1",
        local_etcd_config=Path("/etc/clustermesh/local.yaml"),
        clusters_dir=Path("/etc/clustermesh/clusters"),
        datapath="bpf",
        routing="tunnel",
        listen="127.0.0.1:9879",
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"node_name": "Node_1"}, "'Node_1' is no node name"),
        ({"cluster_id": "256"}, "cluster id 256 is out of range"),
        ({"cluster_name": "East"}, "'East' is no cluster name"),
        ({"listen": "everywhere"}, "'everywhere' is no address"),
        ({"datapath": "iptables"}, 'Invalid value "iptables" for --datapath'),
        ({"cluster_routing": "west=magic"}, "--cluster-routing: 'west=magic' names no routing"),
        ({"cluster_routing": "West=direct"}, "'West' is no cluster name"),
        ({"tunnel_port": "65536"}, "--tunnel-port 65536 is no port"),
        ({"mtu": "1300"}, "--mtu 1300 is out of range"),
        ({"encryption": "rot13"}, 'Invalid value "rot13" for --encryption'),
        ({"encryption_port": "65533"}, "--encryption-port 65533 is out of range"),
        ({"encryption_keepalive": "-1"}, "--encryption-keepalive -1 is out of range"),
        ({"encryption_key_age": "-1"}, "--encryption-key-age is negative"),
        ({"encryption": "wireguard", "datapath": "none"}, "--encryption wireguard needs"),
        ({"routing": "magic"}, 'Invalid value "magic" for --routing'),
    ],
)
def test_a_mistake_is_named(flags: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(**flags)
    assert str(caught.value).startswith(message)


def test_a_cluster_can_have_a_routing_of_its_own() -> None:
    routings = read(routing="direct", cluster_routing="west=native,north=tunnel").routings
    names = [ClusterName(name) for name in ("west", "north", "south")]
    assert [str(routings.to(name)) for name in names] == ["native", "tunnel", "direct"]
