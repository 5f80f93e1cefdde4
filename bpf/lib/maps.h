/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The maps. All are pinned by name, so that they outlive the agent; the sizes that are settings are
 * set by agent/kernel/datapath.py before loading. Include `drops.h` for the map of drops.
 */
#pragma once

#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>

#include "types.h"

/* The generation of backends that each frontend of a global service has at present. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} frontends SEC(".maps");

/* The backends that have no place in their frontend, by generation and slot. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1048576);
	__type(key, struct backend_key);
	__type(value, struct endpoint);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} backends SEC(".maps");

/* The frontend that a socket believes to talk to, by its real peer. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct connection_key);
	__type(value, struct endpoint);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} connections SEC(".maps");

/* The backend that an unconnected UDP socket was given for a frontend. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct session_key);
	__type(value, struct session);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} sessions SEC(".maps");
