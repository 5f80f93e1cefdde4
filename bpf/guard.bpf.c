// SPDX-License-Identifier: Apache-2.0
/*
 * With encryption on, nothing to or from the pods of another cluster is on the wire in plain text.
 *
 *	uplink_*  on devices that are known to lead off the node: neither address may be such a pod's
 *	device_*  on all others but our own: nothing leaves to one, and nothing comes from one. A pod
 *		  of this node sends to them and receives from them, which is the other way round
 *
 * It goes by what the ipcache says, so it holds while the agent is dead, and whatever routes there
 * are. Encrypted packets have the addresses of nodes, and those pass.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "address.h"
#include "drops.h"
#include "ipcache.h"
#include "types.h"

/* Others may have programs on the device too: what we let pass is for them to look at. */
#define NEXT (-1)
#define DROP 2

const volatile __u32 own_cluster_id;

static __always_inline bool is_foreign_pod(const __be32 ip[4])
{
	const struct ipcache_entry *entry = ipcache_lookup(ip);

	if (!entry || entry->cluster_id == own_cluster_id)
		return false;
	/* A node that says it has a pod at its own address would cut itself off, and its etcd. */
	return entry->identity != IDENTITY_REMOTE_NODE && !address_equal(entry->node, ip);
}

struct ends {
	__be32 source[4];
	__be32 destination[4];
};

/* Who sends the packet, and to whom; false if it is no IP packet, which its receiver drops. */
static __always_inline bool read_ends(struct __sk_buff *skb, struct ends *ends)
{
	__be32 pair[2];

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes_relative(skb, offsetof(struct iphdr, saddr), pair,
						sizeof(pair), BPF_HDR_START_NET))
			return false;
		address_map4(ends->source, pair[0]);
		address_map4(ends->destination, pair[1]);
		return true;
	}
	return skb->protocol == bpf_htons(ETH_P_IPV6) &&
	       !bpf_skb_load_bytes_relative(skb, offsetof(struct ipv6hdr, saddr), ends,
					    sizeof(*ends), BPF_HDR_START_NET);
}

static __always_inline int verdict(bool is_plain)
{
	if (!is_plain)
		return NEXT;
	count_drop(DROP_PLAIN_TEXT);
	return DROP;
}

static __always_inline int guard_uplink(struct __sk_buff *skb)
{
	struct ends ends;

	return verdict(read_ends(skb, &ends) &&
		       (is_foreign_pod(ends.destination) || is_foreign_pod(ends.source)));
}

SEC("tc")
int uplink_egress(struct __sk_buff *skb)
{
	return guard_uplink(skb);
}

SEC("tc")
int uplink_ingress(struct __sk_buff *skb)
{
	return guard_uplink(skb);
}

SEC("tc")
int device_egress(struct __sk_buff *skb)
{
	struct ends ends;

	return verdict(read_ends(skb, &ends) && is_foreign_pod(ends.destination));
}

SEC("tc")
int device_ingress(struct __sk_buff *skb)
{
	struct ends ends;

	return verdict(read_ends(skb, &ends) && is_foreign_pod(ends.source));
}

char LICENSE[] SEC("license") = "Apache-2.0"; /* no helper in here is for GPL programs only */
