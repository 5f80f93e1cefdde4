// SPDX-License-Identifier: Apache-2.0
/*
 * With encryption on, nothing to or from the pods of another cluster is on the wire in plain text.
 *
 * On the devices towards other nodes, both ways. It goes by what the ipcache says, so it holds while
 * the agent is dead, and whatever routes there are. Encrypted packets have the addresses of nodes,
 * and those pass.
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

static __always_inline int guard(struct __sk_buff *skb)
{
	__be32 source[4], destination[4], pair[2], pair6[8];

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes_relative(skb, offsetof(struct iphdr, saddr), pair,
						sizeof(pair), BPF_HDR_START_NET))
			return 0; /* no IP packet: its receiver drops it */
		address_map4(source, pair[0]);
		address_map4(destination, pair[1]);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes_relative(skb, offsetof(struct ipv6hdr, saddr), pair6,
						sizeof(pair6), BPF_HDR_START_NET))
			return 0;
		__builtin_memcpy(source, pair6, sizeof(source));
		__builtin_memcpy(destination, pair6 + 4, sizeof(destination));
	} else {
		return 0;
	}
	if (is_foreign_pod(destination) || is_foreign_pod(source))
		return -DROP_PLAIN_TEXT;
	return 0;
}

static __always_inline int verdict(int ret)
{
	if (ret < 0) {
		count_drop(-ret);
		return DROP;
	}
	return NEXT;
}

SEC("tc")
int guard_egress(struct __sk_buff *skb)
{
	return verdict(guard(skb));
}

SEC("tc")
int guard_ingress(struct __sk_buff *skb)
{
	return verdict(guard(skb));
}

char LICENSE[] SEC("license") = "Apache-2.0"; /* no helper in here is for GPL programs only */
