/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The fast path: between a pod's veth and the tunnel or the underlay, past the host's stack.
 *
 * It goes by what the host's stack would do, and leaves to it whatever it does not know to be the
 * same: other protocols, fragments, options, a time to live that ends, packets that do not fit.
 *
 * Netfilter sees nothing of a connection on it. So a connection is on it in both directions or in
 * none, or connection tracking would call half of it invalid; and from its first packet on, or
 * what has been translated on its way out (a ClusterIP, say) would come back as a stranger:
 *
 *	TCP  from the SYN on
 *	UDP  once it has been seen in both directions, each as it is on the wire, so untranslated;
 *	     that the first packets take the other way is nothing to connection tracking
 *
 * What was there before the fast path, or was forgotten by the LRU map, stays with the stack.
 */
#pragma once

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/types.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>

#include "address.h"
#include "ipcache.h"
#include "types.h"

#define FAMILY_IP 2 /* AF_INET and AF_INET6, of a header that is not for BPF */
#define FAMILY_IP6 10
#define ICMP_HEADER 8 /* of either version, before the packet that an error is about */
#define ICMP_DEST_UNREACH 3 /* linux/icmp.h and icmpv6.h are not for BPF either */
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMPV6_ECHO_REQUEST 128 /* errors are below */
#define IP_FRAGMENT 0x3fff /* more fragments, or an offset */

/* Leave it to whoever comes next on the device: another's program, then the host's stack. */
#define PASS TC_ACT_UNSPEC

/* The pods of this node that sit on veths, by address. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct pod_key);
	__type(value, struct pod);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pods SEC(".maps");

/* What a device is to us, by interface index. A device that is not in it is left alone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, enum medium);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} media SEC(".maps");

/* The connections that are on the fast path, or might come to be. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct flow_key);
	__type(value, struct flow_state);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows SEC(".maps");

/* The packets and bytes on the fast path, by direction and CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DIRECTION_COUNT);
	__type(key, __u32);
	__type(value, struct traffic);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast_counters SEC(".maps");

struct packet {
	__be32 source[4];
	__be32 destination[4];
	__be16 source_port;
	__be16 destination_port;
	__u16 length; /* of the largest IP packet that the segments of this one become */
	__u8 protocol;
	__u8 tos;
	__u8 ttl;
	bool is_first; /* opens a TCP connection */
	bool is4;
	__sum16 checksum; /* IPv4 */
};

/* The IP header at an offset, which has to be without options; its size, or -1. */
static __always_inline int parse_ip(struct __sk_buff *skb, __u32 at, struct packet *packet)
{
	struct ipv6hdr ip6;
	struct iphdr ip;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
			return -1;
		if (ip.ihl != sizeof(ip) / 4 || ip.frag_off & bpf_htons(IP_FRAGMENT))
			return -1;
		address_map4(packet->source, ip.saddr);
		address_map4(packet->destination, ip.daddr);
		packet->protocol = ip.protocol;
		packet->tos = ip.tos;
		packet->ttl = ip.ttl;
		packet->checksum = ip.check;
		packet->is4 = true;
		return sizeof(ip);
	}
	if (skb->protocol != bpf_htons(ETH_P_IPV6) ||
	    bpf_skb_load_bytes(skb, at, &ip6, sizeof(ip6)))
		return -1;
	__builtin_memcpy(packet->source, &ip6.saddr, sizeof(ip6.saddr));
	__builtin_memcpy(packet->destination, &ip6.daddr, sizeof(ip6.daddr));
	packet->protocol = ip6.nexthdr;
	packet->tos = ip6.priority << 4 | ip6.flow_lbl[0] >> 4;
	packet->ttl = ip6.hop_limit;
	return sizeof(ip6);
}

/* What follows an IP header of `size`; fails for packets that are none of the fast path's. */
static __always_inline int parse_ports(struct __sk_buff *skb, __u32 size, struct packet *packet)
{
	struct tcphdr tcp;
	struct udphdr udp;

	if (packet->protocol == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN + size, &tcp, sizeof(tcp)))
			return -1;
		packet->source_port = tcp.source;
		packet->destination_port = tcp.dest;
		packet->is_first = tcp.syn && !tcp.ack;
		size += tcp.doff * 4;
	} else if (packet->protocol == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN + size, &udp, sizeof(udp)))
			return -1;
		packet->source_port = udp.source;
		packet->destination_port = udp.dest;
		size += sizeof(udp);
	} else {
		return -1;
	}
	packet->length = skb->gso_size ? size + skb->gso_size : skb->len - ETH_HLEN;
	return 0;
}

/* A router's work. */
static __always_inline int decrement_ttl(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 at = ETH_HLEN + offsetof(struct iphdr, ttl);
	__u32 checksum = packet->checksum;
	struct {
		__u8 ttl;
		__u8 protocol;
		__sum16 check;
	} ip = { packet->ttl - 1, packet->protocol, 0 };

	if (packet->is4) {
		checksum += bpf_htons(0x0100);
		ip.check = checksum + (checksum >= 0xffff);
		return bpf_skb_store_bytes(skb, at, &ip, sizeof(ip), 0);
	}
	at = ETH_HLEN + offsetof(struct ipv6hdr, hop_limit);
	return bpf_skb_store_bytes(skb, at, &ip.ttl, sizeof(ip.ttl), BPF_F_RECOMPUTE_CSUM);
}

static __always_inline int set_macs(struct __sk_buff *skb, const __u8 *to, const __u8 *from)
{
	__u8 macs[2 * ETH_ALEN];

	__builtin_memcpy(macs, to, ETH_ALEN);
	__builtin_memcpy(macs + ETH_ALEN, from, ETH_ALEN);
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
}

static __always_inline struct pod *pod_lookup(const __be32 ip[4])
{
	struct pod_key key = { { ip[0], ip[1], ip[2], ip[3] } };

	return bpf_map_lookup_elem(&pods, &key);
}

static __always_inline bool is_remote_pod(const __be32 ip[4])
{
	const struct ipcache_entry *entry = ipcache_lookup(ip);

	return entry && !address_is_zero(entry->node) && entry->identity != IDENTITY_REMOTE_NODE &&
	       !address_is_multicast(ip);
}

/*
 * Where the host's stack would send what comes in by `device`, as BPF_FIB_LKUP_RET_*. With `back`,
 * where it would send the answer.
 */
static __always_inline long route(struct __sk_buff *skb, const struct packet *packet, __u32 device,
				  bool back, struct bpf_fib_lookup *fib)
{
	const __be32 *from = back ? packet->destination : packet->source;
	const __be32 *to = back ? packet->source : packet->destination;

	fib->family = packet->is4 ? FAMILY_IP : FAMILY_IP6;
	fib->l4_protocol = packet->protocol;
	fib->sport = back ? packet->destination_port : packet->source_port;
	fib->dport = back ? packet->source_port : packet->destination_port;
	fib->tot_len = packet->length;
	fib->ifindex = device;
	if (packet->is4) {
		fib->tos = packet->tos;
		fib->ipv4_src = from[3];
		fib->ipv4_dst = to[3];
	} else {
		__builtin_memcpy(fib->ipv6_src, from, sizeof(fib->ipv6_src));
		__builtin_memcpy(fib->ipv6_dst, to, sizeof(fib->ipv6_dst));
	}
	return bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
}

/* Hand it to the neighbour that a route leads to, which the kernel looks for if it has to. */
static __always_inline long to_next_hop(const struct bpf_fib_lookup *fib)
{
	struct bpf_redir_neigh next = { .nh_family = fib->family };

	/* An IPv4 address is at the same place. */
	__builtin_memcpy(next.ipv6_nh, fib->ipv6_dst, sizeof(next.ipv6_nh));
	return bpf_redirect_neigh(fib->ifindex, &next, sizeof(next), 0);
}

static __always_inline bool leads_to(long found, const struct bpf_fib_lookup *fib, __u32 device)
{
	return (found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH) &&
	       fib->ifindex == device;
}

static __always_inline void count_fast(struct __sk_buff *skb, enum direction direction)
{
	__u32 key = direction;

	count_traffic(bpf_map_lookup_elem(&fast_counters, &key), skb->len);
}

/*
 * Whether a connection that somebody opens to `pod` may be on the fast path: if it is still there,
 * and the answer would go out where this comes in, so that a source that is forged, or that is to
 * be reached otherwise, is left to the stack and its reverse-path filter.
 */
static __always_inline bool may_open(struct __sk_buff *skb, const struct packet *packet,
				     const struct pod *pod, enum medium medium)
{
	struct bpf_fib_lookup to = {}, from = {};

	if (!is_remote_pod(packet->source))
		return false;
	if (!leads_to(route(skb, packet, skb->ifindex, false, &to), &to, pod->device))
		return false;
	return medium == MEDIUM_TUNNEL ||
	       leads_to(route(skb, packet, pod->device, true, &from), &from, skb->ifindex);
}

static __always_inline struct flow_key flow_in(const struct packet *packet)
{
	struct flow_key key = {
		.pod_port = packet->destination_port,
		.remote_port = packet->source_port,
		.protocol = packet->protocol,
	};

	__builtin_memcpy(key.pod, packet->destination, sizeof(key.pod));
	__builtin_memcpy(key.remote, packet->source, sizeof(key.remote));
	return key;
}

static __always_inline struct flow_key flow_out(const struct packet *packet)
{
	struct flow_key key = {
		.pod_port = packet->source_port,
		.remote_port = packet->destination_port,
		.protocol = packet->protocol,
	};

	__builtin_memcpy(key.pod, packet->source, sizeof(key.pod));
	__builtin_memcpy(key.remote, packet->destination, sizeof(key.remote));
	return key;
}

/* Whether the connection is on the fast path; remembers what has been seen of it. */
static __always_inline bool is_fast_in(struct __sk_buff *skb, const struct packet *packet,
				       const struct pod *pod, enum medium medium)
{
	struct flow_state fresh = {
		.medium = medium,
		.seen_in = 1,
		.seen_out = packet->is_first, /* as good as: nothing of it has been translated */
	};
	struct flow_key key = flow_in(packet);
	struct flow_state *known = bpf_map_lookup_elem(&flows, &key);

	if (known && !packet->is_first) {
		if (known->medium != medium)
			return false;
		if (!known->seen_in)
			known->seen_in = 1;
		return known->seen_out;
	}
	if (packet->protocol == IPPROTO_TCP && !packet->is_first)
		return false; /* the stack has it from before */
	if (!may_open(skb, packet, pod, medium))
		return false;
	bpf_map_update_elem(&flows, &key, &fresh, BPF_ANY);
	return packet->is_first;
}

static __always_inline bool is_icmp_error(struct __sk_buff *skb, const struct packet *packet,
					  __u32 size)
{
	__u8 type;

	if (packet->protocol != (packet->is4 ? IPPROTO_ICMP : IPPROTO_ICMPV6) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + size, &type, sizeof(type)))
		return false;
	if (!packet->is4)
		return type < ICMPV6_ECHO_REQUEST;
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETERPROB;
}

/* Whether an ICMP message is an error about a connection on the fast path: no rule would know it. */
static __always_inline bool is_error_about_fast(struct __sk_buff *skb, const struct packet *packet,
						__u32 size, enum medium medium)
{
	__u32 at = ETH_HLEN + size + ICMP_HEADER;
	const struct flow_state *known;
	struct packet inner = {};
	struct flow_key key;
	__be16 ports[2];
	int inner_size;

	inner_size = parse_ip(skb, at, &inner);
	if (inner_size < 0 || !address_equal(inner.source, packet->destination) ||
	    bpf_skb_load_bytes(skb, at + inner_size, ports, sizeof(ports)))
		return false;
	inner.source_port = ports[0];
	inner.destination_port = ports[1];
	key = flow_out(&inner);
	known = bpf_map_lookup_elem(&flows, &key);
	return known && known->medium == medium && known->seen_out && known->seen_in;
}

/* Whether the device of a pod takes a packet: if not, the stack answers it. */
static __always_inline bool fits(struct __sk_buff *skb, const struct packet *packet,
				 const struct pod *pod)
{
	__u32 mtu = 0;

	return bpf_check_mtu(skb, pod->device, &mtu, 0, 0) >= 0 && packet->length <= mtu;
}

/* Give the pod a packet that has come by `medium`; PASS if it is not for the fast path. */
static __always_inline int deliver(struct __sk_buff *skb, enum medium medium)
{
	struct packet packet = {};
	const struct pod *pod;
	int size;

	size = parse_ip(skb, ETH_HLEN, &packet);
	if (size < 0 || packet.ttl <= 1)
		return PASS;
	pod = pod_lookup(packet.destination);
	if (!pod)
		return PASS;
	if (is_icmp_error(skb, &packet, size)) {
		if (!is_error_about_fast(skb, &packet, size, medium))
			return PASS;
	} else if (parse_ports(skb, size, &packet) < 0 || !fits(skb, &packet, pod) ||
		   !is_fast_in(skb, &packet, pod, medium)) {
		return PASS;
	}
	if (decrement_ttl(skb, &packet) || set_macs(skb, pod->mac, pod->gateway))
		return TC_ACT_SHOT; /* no memory */
	count_fast(skb, DIRECTION_INGRESS);
	return bpf_redirect_peer(pod->port, 0);
}
