"""
Calico with natOutgoing: routed links without an address, and pools of addresses as sets.

From the chains and sets that Felix writes (masq_mgr and the dispatch of workloads), and from its
CNI plugin: the pod's gateway is 169.254.1.1, for which the node answers ARP; for IPv6 it is the
link-local address of the node's end. With VXLAN or IPIP a node has an address of the pool on its
own tunnel device; without encapsulation it has none. Felix has rp_filter strict on these links.
"""

from __future__ import annotations

from .topology import Layout, Rules, Topology

_POOLS = """\
create cali${version}0all-ipam-pools hash:net family $inet
add cali${version}0all-ipam-pools $cluster
create cali${version}0masq-ipam-pools hash:net family $inet
add cali${version}0masq-ipam-pools $cluster
"""

_IPTABLES = """\
*nat
:cali-POSTROUTING - [0:0]
:cali-nat-outgoing - [0:0]
-A POSTROUTING -j cali-POSTROUTING
-A cali-POSTROUTING -j cali-nat-outgoing
-A cali-POSTROUTING -o vxlan.calico -m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype \
--src-type LOCAL -j MASQUERADE --random-fully
-A cali-nat-outgoing -m set --match-set cali${version}0masq-ipam-pools src -m set ! --match-set \
cali${version}0all-ipam-pools dst -j MASQUERADE --random-fully
COMMIT
*filter
:cali-FORWARD - [0:0]
:cali-from-wl-dispatch - [0:0]
:cali-to-wl-dispatch - [0:0]
-A FORWARD -j cali-FORWARD
-A cali-FORWARD -i pod+ -j cali-from-wl-dispatch
-A cali-FORWARD -o pod+ -j cali-to-wl-dispatch
-A cali-FORWARD -j MARK --set-xmark 0x10000/0x10000
-A cali-from-wl-dispatch -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-from-wl-dispatch -m conntrack --ctstate INVALID -j DROP
-A cali-to-wl-dispatch -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-to-wl-dispatch -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT
COMMIT
"""

_NFTABLES = """\
table $ip calico {
  set cali${version}0all-ipam-pools {
    type $address
    flags interval
    elements = { $cluster }
  }
  set cali${version}0masq-ipam-pools {
    type $address
    flags interval
    elements = { $cluster }
  }
  chain nat-POSTROUTING {
    type nat hook postrouting priority srcnat;
    jump nat-cali-nat-outgoing
  }
  chain nat-cali-nat-outgoing {
    $ip saddr @cali${version}0masq-ipam-pools $ip daddr != @cali${version}0all-ipam-pools \
masquerade fully-random
  }
  chain filter-FORWARD {
    type filter hook forward priority filter;
    iifname "pod*" jump filter-cali-wl
    oifname "pod*" jump filter-cali-wl
  }
  chain filter-cali-wl {
    ct state established,related accept
    ct state invalid drop
  }
}
"""

TOPOLOGIES = (
    Topology(
        "Calico with VXLAN, iptables-nft",
        Layout.PROXY_ARP,
        (Rules("ipset", _POOLS), Rules("iptables-nft", _IPTABLES)),
        tunnel_address="vxlan.calico",
    ),
    Topology(
        "Calico without encapsulation, nftables", Layout.PROXY_ARP, (Rules("nft", _NFTABLES),)
    ),
)
