"""What is told of claims that are not used."""

from __future__ import annotations

from ipaddress import ip_network

from agent.refused import RefusedMetrics, refused
from agent.rows import Cidr
from agent.rules.cidrs import CidrKey
from clustermesh.model import ClusterId, ClusterName
from clustermesh.state import Table


def test_what_is_refused_is_named_and_counted_by_cluster() -> None:
    cidrs: Table[CidrKey, Cidr] = Table("cidrs")
    writer = cidrs.writer("rule")
    for cluster, cidr, more in (
        ("west", "10.1.0.0/24", {"refused": "is ours"}),
        ("west", "10.2.0.0/24", {"closed": "it does not encrypt"}),
        ("west", "192.0.2.2/32", {"closed": "it does not encrypt", "is_node": True}),
        ("north", "10.3.0.0/24", {}),
    ):
        name = ClusterName(cluster)
        row = Cidr(name, ClusterId(2), "node1", (), **more)
        writer.put(CidrKey(ip_network(cidr), name, "node1"), row)
    assert [line.partition(" is refused: ")[2] for line in refused(cidrs)] == [
        "is ours",
        "it does not encrypt",
    ]
    (family,) = RefusedMetrics(cidrs).collect()
    found = {sample.labels["cluster"]: sample.value for sample in family.samples}
    assert found == {"north": 0, "west": 2}
