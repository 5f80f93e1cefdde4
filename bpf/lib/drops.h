/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Why a packet was dropped or a call refused. Functions return these negated; all are counted. */
#pragma once

#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/types.h>

enum drop_reason {
	DROP_NO_BACKEND = 1,   /* the service has no ready backend in any cluster */
	DROP_STALE_FRONTEND,   /* the frontend names a slot that is not there, twice */
	DROP_NOT_IP,           /* the tunnel carries IPv4 and IPv6 only */
	DROP_TRUNCATED,        /* too short for its IP header */
	DROP_NO_TUNNEL,        /* the ipcache knows no node for the destination */
	DROP_MULTICAST,        /* what a device says to its neighbours; no group spans a mesh */
	DROP_TUNNEL_KEY,       /* the kernel gave or took no tunnel key */
	DROP_SPOOFED_SOURCE,   /* the inner source is not behind the node that sent it */
	DROP_FOREIGN_IDENTITY, /* the identity is not of the source's cluster */
	DROP_TRANSIT,          /* for another cluster: we are no router for peers */
	DROP_PLAIN_TEXT,       /* of or for another cluster's pod, and not encrypted */
};

/* Dropped packets and refused calls, by reason and CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 32); /* room for more reasons in the same schema */
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} drops SEC(".maps");

/* Not inlined: so the enum is in the object's BTF, where the tests compare it with Python's. */
static __noinline int count_drop(enum drop_reason reason)
{
	__u32 key = reason;
	__u64 *count = bpf_map_lookup_elem(&drops, &key);

	if (count)
		__sync_fetch_and_add(count, 1); /* a socket call may be interrupted by another */
	return 0;
}
