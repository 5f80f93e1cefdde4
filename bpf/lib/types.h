/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
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

struct pod_key {
	__be32 ip[4];
};
_Static_assert(sizeof(struct pod_key) == 16, "pod_key");

/* Where a pod of this node is. */
struct pod {
	__u32 port;	 /* its veth, our end */
	__u32 device;	 /* that its address is routed to: the same, or the bridge of that port */
	__u8 mac[6];	 /* of the pod */
	__u8 gateway[6]; /* that the pod sends to: of `device` */
};
_Static_assert(sizeof(struct pod) == 20, "pod");

/* What carries packets between nodes. */
enum medium {
	MEDIUM_TUNNEL = 1,
	MEDIUM_UNDERLAY,
};

/* A connection between a pod of this node and one of another cluster. */
struct flow_key {
	__be32 pod[4];
	__be32 remote[4];
	__be16 pod_port;
	__be16 remote_port;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct flow_key) == 40, "flow_key");

struct flow_state {
	enum medium medium;
	__u8 seen_out; /* its packets have been seen, in this direction, as they are on the wire */
	__u8 seen_in;
	__u8 pad[2];
};
_Static_assert(sizeof(struct flow_state) == 8, "flow_state");
