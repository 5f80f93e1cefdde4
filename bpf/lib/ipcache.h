/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>

#include "types.h"

#define ADDRESS_BITS 128

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
