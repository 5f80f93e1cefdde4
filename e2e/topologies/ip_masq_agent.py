"""
ip-masq-agent: everything is masqueraded but what its configuration names.

From its README, with the cluster's own pods as the only nonMasqueradeCIDRs. Its default (all
private networks) would leave the mesh alone, and prove nothing.
"""

from __future__ import annotations

from .topology import Layout, Rules, Topology

_IPTABLES = """\
*nat
:IP-MASQ-AGENT - [0:0]
-A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT
-A IP-MASQ-AGENT -d $cluster -j RETURN
-A IP-MASQ-AGENT -j MASQUERADE --random-fully
COMMIT
"""

TOPOLOGIES = (
    Topology(
        "ip-masq-agent, iptables-legacy", Layout.BRIDGE, (Rules("iptables-legacy", _IPTABLES),)
    ),
)
