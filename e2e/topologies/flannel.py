"""
flannel: pods on the bridge cni0, and masquerading in both directions.

From flannel's pkg/trafficmngr (iptables and nftables) and the bridge plugin that it delegates to.
What comes from elsewhere to pods of *other* nodes is masqueraded too. That bridged packets are
shown to iptables is what Kubernetes asks of a node; that nothing else is forwarded, what Docker
makes of one.
"""

from __future__ import annotations

from .topology import Layout, Rules, Topology

_IPTABLES = """\
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
-A FLANNEL-POSTRTG -s $pods -d $cluster -j RETURN
-A FLANNEL-POSTRTG -s $cluster -d $pods -j RETURN
-A FLANNEL-POSTRTG ! -s $cluster -d $pods -j RETURN
-A FLANNEL-POSTRTG -s $cluster ! -d $multicast -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s $cluster -d $cluster -j MASQUERADE --random-fully
COMMIT
*filter
:FORWARD DROP [0:0]
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s $cluster -j ACCEPT
-A FLANNEL-FWD -d $cluster -j ACCEPT
COMMIT
"""

_NFTABLES = """\
table $ip flannel-ipv$version {
  chain postrtg {
    type nat hook postrouting priority srcnat;
    meta mark 0x4000 return
    $ip saddr $pods $ip daddr $cluster return
    $ip saddr $cluster $ip daddr $pods return
    $ip saddr != $pods $ip daddr $cluster return
    $ip saddr $cluster $ip daddr != $multicast masquerade fully-random
    $ip saddr != $cluster $ip daddr $cluster masquerade fully-random
  }
  chain forward {
    type filter hook forward priority filter;
    $ip saddr $cluster accept
    $ip daddr $cluster accept
  }
}
"""

_BRIDGED = {"bridge/bridge-nf-call-iptables": "1", "bridge/bridge-nf-call-ip6tables": "1"}

TOPOLOGIES = (
    Topology(
        "flannel, iptables-legacy",
        Layout.BRIDGE,
        (Rules("iptables-legacy", _IPTABLES),),
        sysctls=_BRIDGED,
    ),
    Topology(
        "flannel, iptables-nft",
        Layout.BRIDGE,
        (Rules("iptables-nft", _IPTABLES),),
        sysctls=_BRIDGED,
    ),
    Topology("flannel, nftables", Layout.BRIDGE, (Rules("nft", _NFTABLES),), sysctls=_BRIDGED),
)
