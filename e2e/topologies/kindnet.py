"""
kindnet: routed links, and everything masqueraded that leaves the cluster.

From kindnet's pkg/masq, whose chain is at srcnat - 10, before that of everybody else; and from
kind's own images of before, which wrote iptables.
"""

from __future__ import annotations

from .topology import Layout, Rules, Topology

_NFTABLES = """\
table inet kindnet-ipmasq {
  set noMasqV$version {
    type $address
    flags interval
    auto-merge
    elements = { $cluster }
  }
  chain postrouting {
    type nat hook postrouting priority srcnat - 10;
  }
}
add rule inet kindnet-ipmasq postrouting ct state established,related accept
add rule inet kindnet-ipmasq postrouting fib daddr type local accept
add rule inet kindnet-ipmasq postrouting $ip daddr @noMasqV$version accept
add rule inet kindnet-ipmasq postrouting meta nfproto ipv$version masquerade
"""

_IPTABLES = """\
*nat
:KIND-MASQ-AGENT - [0:0]
-A POSTROUTING -m addrtype ! --dst-type LOCAL -j KIND-MASQ-AGENT
-A KIND-MASQ-AGENT -d $cluster -j RETURN
-A KIND-MASQ-AGENT -j MASQUERADE
COMMIT
"""

TOPOLOGIES = (
    Topology("kindnet, nftables", Layout.PTP, (Rules("nft", _NFTABLES),)),
    Topology("kindnet, iptables-nft", Layout.PTP, (Rules("iptables-nft", _IPTABLES),)),
)
