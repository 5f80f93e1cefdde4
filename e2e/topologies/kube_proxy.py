"""
kube-proxy: masquerades what it has marked, and drops what conntrack takes for invalid.

From Kubernetes' pkg/proxy/iptables and pkg/proxy/nftables: the parts that a packet of no service
meets. The device layout is that of the `ptp` plugin, without any rule of a CNI.
"""

from __future__ import annotations

from .topology import Layout, Rules, Topology

_IPTABLES = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
-A FORWARD -j KUBE-FORWARD
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""

_NFTABLES = """\
table $ip kube-proxy {
  set cluster-ips {
    type $address
  }
  chain filter-forward {
    type filter hook forward priority -110;
    ct state new jump service-endpoints-check
  }
  chain service-endpoints-check {
  }
  chain nat-prerouting {
    type nat hook prerouting priority dstnat;
    jump services
  }
  chain nat-output {
    type nat hook output priority -100;
    jump services
  }
  chain services {
    $ip daddr $services counter
  }
  chain nat-postrouting {
    type nat hook postrouting priority srcnat;
    jump masquerading
  }
  chain masquerading {
    meta mark & 0x4000 == 0 return
    meta mark set meta mark ^ 0x4000
    masquerade fully-random
  }
}
"""

TOPOLOGIES = (
    Topology(
        "kube-proxy, iptables-legacy",
        Layout.PTP,
        (Rules("iptables-legacy", _IPTABLES),),
        masquerades=False,
    ),
    Topology("kube-proxy, nftables", Layout.PTP, (Rules("nft", _NFTABLES),), masquerades=False),
)
