/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every struct that a map holds. agent/kernel/layouts.py is the Python twin of this file, and
 * bpf/tests/test_layouts.py holds the two together.
 *
 * Addresses are 16 bytes in network order, IPv4 mapped into ::ffff:0:0/96: one map does for both
 * families, and an AF_INET6 socket that connects to ::ffff:10.0.0.1 finds the IPv4 frontend.
 *
 * A change of any of these is a new schema: count SCHEMA in agent/kernel/pins.py up.
 */
#pragma once

#include <linux/types.h>

struct endpoint {
	__be32 ip[4];
	__be16 port;
	__u16 pad;
};
_Static_assert(sizeof(struct endpoint) == 20, "endpoint");

struct frontend_key {
	__be32 ip[4];
	__be16 port;
	__u8 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 pad;
};
_Static_assert(sizeof(struct frontend_key) == 20, "frontend_key");

/* How many backends are in the frontend itself: the kernel allocates 192 bytes, these fill them. */
#define NEAR_BACKENDS 5

/*
 * The backends that a frontend has at present, in slots 0 to count - 1: the first ones are here,
 * where they cost no second lookup, the others in the map of backends by `id` and `generation`.
 */
struct frontend {
	__u32 id;
	__u32 generation;
	__u32 count; /* 0: connections are refused */
	struct endpoint near[NEAR_BACKENDS];
};
_Static_assert(sizeof(struct frontend) == 112, "frontend");

struct backend_key {
	__u32 frontend; /* frontend.id */
	__u32 generation;
	__u32 slot;
};
_Static_assert(sizeof(struct backend_key) == 12, "backend_key");

/* Socket and real peer: what recvmsg and getpeername know. */
struct connection_key {
	__u64 cookie;
	struct endpoint backend;
	__u32 pad;
};
_Static_assert(sizeof(struct connection_key) == 32, "connection_key");

/* Socket and frontend: what sendmsg knows. */
struct session_key {
	__u64 cookie;
	struct endpoint frontend;
	__u32 pad;
};
_Static_assert(sizeof(struct session_key) == 32, "session_key");

struct session {
	struct endpoint backend;
	__u32 frontend; /* the frontend.id and generation that `backend` was last seen in */
	__u32 generation;
};
_Static_assert(sizeof(struct session) == 28, "session");

/* An LPM trie key: an IPv4 prefix is 96 bits longer than it is written. */
struct ipcache_key {
	__u32 prefixlen;
	__be32 ip[4];
};
_Static_assert(sizeof(struct ipcache_key) == 20, "ipcache_key");

struct ipcache_entry {
	__be32 node[4]; /* where to tunnel to; all zero: in this cluster, no tunnel */
	__u32 identity;
	__u32 cluster_id;
};
_Static_assert(sizeof(struct ipcache_entry) == 24, "ipcache_entry");

enum direction {
	DIRECTION_EGRESS,
	DIRECTION_INGRESS,
	DIRECTION_COUNT,
};

struct traffic {
	__u64 packets;
	__u64 bytes;
};
_Static_assert(sizeof(struct traffic) == 16, "traffic");
