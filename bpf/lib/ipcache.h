/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
#pragma once

#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>

#include "types.h"

#define ADDRESS_BITS 128

/* STABLE API: identities of Cilium. Those below 256 belong to no cluster. */
#define IDENTITY_WORLD 2
#define IDENTITY_REMOTE_NODE 6
#define IDENTITY_RESERVED_END 256

/* Who has an address, and the node to tunnel to for it, by longest prefix. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 512000);
	__type(key, struct ipcache_key);
	__type(value, struct ipcache_entry);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ipcache SEC(".maps");

/* The packets and bytes that the tunnel carried, by direction and CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DIRECTION_COUNT);
	__type(key, __u32);
	__type(value, struct traffic);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} counters SEC(".maps");

static __always_inline struct ipcache_entry *ipcache_lookup(const __be32 ip[4])
{
	struct ipcache_key key = {
		.prefixlen = ADDRESS_BITS,
		.ip = { ip[0], ip[1], ip[2], ip[3] },
	};

	return bpf_map_lookup_elem(&ipcache, &key);
}

static __always_inline void count_traffic(struct traffic *traffic, __u32 bytes)
{
	if (!traffic)
		return;
	__sync_fetch_and_add(&traffic->packets, 1);
	__sync_fetch_and_add(&traffic->bytes, bytes);
}
