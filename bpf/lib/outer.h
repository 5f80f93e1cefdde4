/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The tunnel's outer headers, written here as the tunnel device would write them, for packets that
 * go past that device too.
 *
 *	IP  UDP  VXLAN or Geneve, which are as long  the pod's Ethernet header  its packet
 *
 * What the kernel does not take (before 6.7 a look-up does not say the source address), what does
 * not fit and what has no route is for the device, which knows how to refuse.
 */
#pragma once

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>

#include "address.h"
#include "fast.h"
#include "ipcache.h"
#include "types.h"

/* How the node's tunnel device is made, as in `agent/kernel/tunnel.py`. */
const volatile __be16 tunnel_port = 0;
const volatile bool is_geneve = false;

/* Flags that are younger than the headers of the systems that we build on. */
#define FIB_LOOKUP_SKIP_NEIGH (1U << 2)
#define FIB_LOOKUP_SRC (1U << 4)

#define LOOPBACK 1 /* where the kernel looks routes up from for packets of its own */
#define TUNNEL_TTL 64
#define VXLAN_HAS_VNI 0x08000000
#define GENEVE_CARRIES_ETHERNET 0x00006558
#define LONGEST 65000 /* that IP and UDP have a length for, with what is in front */
#define ECN_MASK 0x3
#define ECN_CE 0x3
#define ECN_ECT0 0x2

struct tunnel_header {
	__be32 kind;
	__be32 vni;
};

/* What is between the outer IP header and the inner one. */
struct wrapping {
	struct udphdr udp;
	struct tunnel_header header;
	struct ethhdr inner;
} __attribute__((packed));

struct outer4 {
	struct iphdr ip;
	struct wrapping wrapping;
} __attribute__((packed));

struct outer6 {
	struct ipv6hdr ip;
	struct wrapping wrapping;
} __attribute__((packed));

/* The flags with which room is made between the pod's Ethernet header and its packet. */
#define ROOM_FLAGS                                                                                 \
	(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |                                  \
	 BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH)

/* The bits that tell of congestion, outside: see RFC 6040. */
static __always_inline __u8 outer_ecn(const struct packet *packet)
{
	__u8 ecn = packet->tos & ECN_MASK;

	return ecn == ECN_CE ? ECN_ECT0 : ecn;
}

static __always_inline long fill_wrapping(struct __sk_buff *skb, struct wrapping *wrapping,
					  __u32 identity)
{
	/* A port of the connection's own, so that routers can spread connections. */
	wrapping->udp.source = bpf_htons(0x8000 | (bpf_get_hash_recalc(skb) & 0x7fff));
	wrapping->udp.dest = tunnel_port;
	wrapping->udp.len = bpf_htons(sizeof(wrapping->udp) + sizeof(wrapping->header) + skb->len);
	wrapping->header.kind = bpf_htonl(is_geneve ? GENEVE_CARRIES_ETHERNET : VXLAN_HAS_VNI);
	wrapping->header.vni = bpf_htonl(identity << 8);
	return bpf_skb_load_bytes(skb, 0, &wrapping->inner, sizeof(wrapping->inner));
}

static __always_inline __sum16 ip_checksum(const struct iphdr *ip)
{
	const __u16 *words = (const __u16 *)ip;
	__u32 sum = 0;

	for (size_t i = 0; i < sizeof(*ip) / sizeof(*words); i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Where the outer packet of `length` bytes goes, and from which address. */
static __always_inline bool route_outer(struct __sk_buff *skb, struct bpf_fib_lookup *fib,
					__u32 length)
{
	fib->ifindex = LOOPBACK;
	fib->l4_protocol = IPPROTO_UDP;
	fib->dport = tunnel_port;
	fib->tot_len = length;
	return bpf_fib_lookup(skb, fib, sizeof(*fib), FIB_LOOKUP_SKIP_NEIGH | FIB_LOOKUP_SRC) ==
	       BPF_FIB_LKUP_RET_SUCCESS;
}

/* `outer`, of `size` bytes and an IP version; PASS: the kernel does not put it there. */
static __always_inline long put_in_front(struct __sk_buff *skb, const void *outer, __u32 size,
					 __u64 version, const struct bpf_fib_lookup *fib)
{
	__u32 key = DIRECTION_EGRESS;

	if (bpf_skb_adjust_room(skb, size, BPF_ADJ_ROOM_MAC, version | ROOM_FLAGS))
		return PASS;
	if (bpf_skb_store_bytes(skb, ETH_HLEN, outer, size, 0))
		return TC_ACT_SHOT; /* no memory */
	count_traffic(bpf_map_lookup_elem(&counters, &key), skb->len - size);
	return to_next_hop(fib);
}

static __always_inline long send_over4(struct __sk_buff *skb, const struct packet *packet,
				       __be32 node, __u32 identity)
{
	struct bpf_fib_lookup fib = { .family = FAMILY_IP, .ipv4_dst = node };
	struct outer4 outer = {};
	struct iphdr ip = {};

	if (!route_outer(skb, &fib, packet->length + sizeof(outer)))
		return PASS;
	ip = (struct iphdr){
		.version = 4,
		.ihl = sizeof(ip) / 4,
		.tos = outer_ecn(packet),
		.tot_len = bpf_htons(sizeof(outer) - ETH_HLEN + skb->len),
		.id = bpf_get_prandom_u32(), /* a router may cut it into fragments */
		.ttl = TUNNEL_TTL,
		.protocol = IPPROTO_UDP,
		.saddr = fib.ipv4_src,
		.daddr = node,
	};
	ip.check = ip_checksum(&ip);
	outer.ip = ip;
	if (fill_wrapping(skb, &outer.wrapping, identity))
		return PASS;
	return put_in_front(skb, &outer, sizeof(outer), BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, &fib);
}

static __always_inline long send_over6(struct __sk_buff *skb, const struct packet *packet,
				       const __be32 node[4], __u32 identity)
{
	struct bpf_fib_lookup fib = { .family = FAMILY_IP6 };
	struct outer6 outer = {};

	__builtin_memcpy(fib.ipv6_dst, node, sizeof(fib.ipv6_dst));
	if (!route_outer(skb, &fib, packet->length + sizeof(outer)))
		return PASS;
	outer.ip = (struct ipv6hdr){
		.version = 6,
		.flow_lbl = { outer_ecn(packet) << 4 },
		.payload_len = bpf_htons(sizeof(outer.wrapping) - ETH_HLEN + skb->len),
		.nexthdr = IPPROTO_UDP,
		.hop_limit = TUNNEL_TTL,
	};
	__builtin_memcpy(&outer.ip.saddr, fib.ipv6_src, sizeof(outer.ip.saddr));
	__builtin_memcpy(&outer.ip.daddr, node, sizeof(outer.ip.daddr));
	if (fill_wrapping(skb, &outer.wrapping, identity))
		return PASS;
	return put_in_front(skb, &outer, sizeof(outer), BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, &fib);
}

/* Send it to the node that it is for; PASS: it is as it was, and for the tunnel device. */
static __always_inline long send_over(struct __sk_buff *skb, const struct packet *packet)
{
	const struct ipcache_entry *to = ipcache_lookup(packet->destination);
	const struct ipcache_entry *from = ipcache_lookup(packet->source);
	__u32 identity = from ? from->identity : IDENTITY_WORLD;

	if (!to || address_is_zero(to->node) || skb->len > LONGEST)
		return PASS;
	if (address_is4(to->node))
		return send_over4(skb, packet, to->node[3], identity);
	return send_over6(skb, packet, to->node, identity);
}
