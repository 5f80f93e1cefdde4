// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * The two ends of the tunnel, on the one VXLAN device of the node (collect-metadata mode, NOARP).
 *
 *	egress   who sends it is the VNI; where it goes says the ipcache
 *	ingress  the ipcache must agree that the inner source is behind the node that sent it
 *
 * Peers are not trusted: a node of another cluster can speak for its own pods only, with identities
 * of its own cluster, and only to this cluster.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "address.h"
#include "drops.h"
#include "fast.h"
#include "ipcache.h"
#include "types.h"

/* Kernels before 6.1 know the tunnel key without its local address; later ones still take that. */
#define TUNNEL_KEY_SIZE offsetof(struct bpf_tunnel_key, local_ipv6)

/* Whether pods on veths get their packets straight from here: see fast.h. */
const volatile bool has_fast_path = false;

/* identity >> identity_shift is the cluster id: 16 in a mesh of 255 clusters, 15 in one of 511. */
const volatile __u32 identity_shift = 16;

struct flow {
	__be32 source[4];
	__be32 destination[4];
};

static __always_inline int parse(struct __sk_buff *skb, struct flow *flow)
{
	__be32 pair[2];

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, saddr), pair,
				       sizeof(pair)))
			return -DROP_TRUNCATED;
		address_map4(flow->source, pair[0]);
		address_map4(flow->destination, pair[1]);
		return 0;
	}
	if (skb->protocol != bpf_htons(ETH_P_IPV6))
		return -DROP_NOT_IP;
	if (bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, saddr), flow,
			       sizeof(*flow)))
		return -DROP_TRUNCATED;
	return 0;
}

static __always_inline int set_tunnel_key(struct __sk_buff *skb, const struct ipcache_entry *to,
					  __u32 identity)
{
	struct bpf_tunnel_key key = { .tunnel_id = identity, .tunnel_ttl = 64 };
	__u64 flags = BPF_F_ZERO_CSUM_TX;

	if (address_is4(to->node)) {
		key.remote_ipv4 = bpf_ntohl(to->node[3]);
	} else {
		__builtin_memcpy(key.remote_ipv6, to->node, sizeof(key.remote_ipv6));
		flags |= BPF_F_TUNINFO_IPV6;
	}
	if (bpf_skb_set_tunnel_key(skb, &key, TUNNEL_KEY_SIZE, flags))
		return -DROP_TUNNEL_KEY;
	return 0;
}

/* The node that the packet came from, and the identity that it claims. */
static __always_inline int get_tunnel_key(struct __sk_buff *skb, __be32 node[4], __u32 *identity)
{
	struct bpf_tunnel_key key = {};

	if (bpf_skb_get_tunnel_key(skb, &key, TUNNEL_KEY_SIZE, 0) == 0)
		address_map4(node, bpf_htonl(key.remote_ipv4));
	else if (bpf_skb_get_tunnel_key(skb, &key, TUNNEL_KEY_SIZE, BPF_F_TUNINFO_IPV6) == 0)
		__builtin_memcpy(node, key.remote_ipv6, sizeof(key.remote_ipv6));
	else
		return -DROP_TUNNEL_KEY;
	*identity = key.tunnel_id;
	return 0;
}

static __always_inline int encapsulate(struct __sk_buff *skb)
{
	const struct ipcache_entry *to, *from;
	struct flow flow;
	int ret;

	ret = parse(skb, &flow);
	if (ret < 0)
		return ret;
	if (address_is_multicast(flow.destination))
		return -DROP_MULTICAST;
	to = ipcache_lookup(flow.destination);
	if (!to || address_is_zero(to->node))
		return -DROP_NO_TUNNEL;
	from = ipcache_lookup(flow.source);
	return set_tunnel_key(skb, to, from ? from->identity : IDENTITY_WORLD);
}

static __always_inline int admit(struct __sk_buff *skb)
{
	const struct ipcache_entry *to, *from;
	struct flow flow;
	__u32 identity;
	__be32 node[4];
	int ret;

	ret = parse(skb, &flow);
	if (ret < 0)
		return ret;
	ret = get_tunnel_key(skb, node, &identity);
	if (ret < 0)
		return ret;
	from = ipcache_lookup(flow.source);
	if (!from || !address_equal(from->node, node))
		return -DROP_SPOOFED_SOURCE;
	if (identity >= IDENTITY_RESERVED_END && identity >> identity_shift != from->cluster_id)
		return -DROP_FOREIGN_IDENTITY;
	to = ipcache_lookup(flow.destination);
	if (to && !address_is_zero(to->node))
		return -DROP_TRANSIT;
	/* The sender does not know our device's MAC address: the kernel thinks it is not for us. */
	bpf_skb_change_type(skb, PACKET_HOST);
	return 0;
}

/* Not inlined: so the enum is in the object's BTF, where the tests compare it with Python's. */
static __noinline int count_tunnel(struct __sk_buff *skb, enum direction direction)
{
	__u32 key = direction;

	count_traffic(bpf_map_lookup_elem(&counters, &key), skb->len);
	return 0;
}

static __always_inline int verdict(struct __sk_buff *skb, int ret, enum direction direction)
{
	if (ret < 0) {
		count_drop(-ret);
		return TC_ACT_SHOT;
	}
	count_tunnel(skb, direction);
	return TC_ACT_OK;
}

SEC("tc")
int tunnel_egress(struct __sk_buff *skb)
{
	return verdict(skb, encapsulate(skb), DIRECTION_EGRESS);
}

SEC("tc")
int tunnel_ingress(struct __sk_buff *skb)
{
	int ret = verdict(skb, admit(skb), DIRECTION_INGRESS);

	if (has_fast_path && ret == TC_ACT_OK)
		return deliver(skb, MEDIUM_TUNNEL);
	return ret;
}

/* The kernel lets programs under the GPL only look up routes; these are under either license. */
char LICENSE[] SEC("license") = "GPL";
