// SPDX-License-Identifier: Apache-2.0
/*
 * Service load balancing at the socket: the address of a frontend is replaced by that of a backend
 * before any packet exists, and back when the application asks who it talks to.
 *
 *	connect, sendmsg      frontend -> backend, remembered by socket cookie
 *	recvmsg, getpeername  backend -> frontend
 *
 * An address that is no frontend costs one hash lookup and is left alone, so whatever else does
 * Services on the node (kube-proxy, a CNI) sees it as if we were not there.
 *
 * An AF_INET6 socket that sends to ::ffff:a.b.c.d comes through sendmsg4 and its answers through
 * recvmsg6; since IPv4 is mapped in every map, that needs no special case.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "address.h"
#include "drops.h"
#include "maps.h"
#include "types.h"

#define REFUSE 0
#define ALLOW 1

/*
 * How many slots are searched for the backend of a UDP session after its service has changed. In a
 * larger service such a session may get another backend then.
 */
#define SESSION_SEARCH 128

/* Whether the kernel has bpf_set_retval (5.18): else a refused call gets EPERM. */
const volatile bool has_set_retval = true;

static __always_inline bool endpoint_equal(const struct endpoint *a, const struct endpoint *b)
{
	return address_equal(a->ip, b->ip) && a->port == b->port;
}

/* The backend in a slot that has no place in `frontend`; NULL if the frontend is no longer so. */
static __always_inline const struct endpoint *far_backend(const struct frontend *frontend,
							  __u32 slot)
{
	struct backend_key key = {
		.frontend = frontend->id,
		.generation = frontend->generation,
		.slot = slot,
	};

	return bpf_map_lookup_elem(&backends, &key);
}

/*
 * Whether `backend` is among the backends of `frontend`, as far as is worth searching.
 *
 * The near ones have a loop of their own, unrolled: a pointer that runs on behind the last of them,
 * even if nothing is read there, is refused to who lacks CAP_PERFMON.
 */
static __always_inline bool serves(const struct frontend *frontend, const struct endpoint *backend)
{
	__u32 slot;

#pragma unroll
	for (slot = 0; slot < NEAR_BACKENDS; slot++) {
		if (slot >= frontend->count)
			return false;
		if (endpoint_equal(&frontend->near[slot], backend))
			return true;
	}
	for (slot = NEAR_BACKENDS; slot < SESSION_SEARCH; slot++) {
		const struct endpoint *found;

		if (slot >= frontend->count)
			return false;
		found = far_backend(frontend, slot);
		if (found && endpoint_equal(found, backend))
			return true;
	}
	return false;
}

/*
 * Any backend of `frontend`; 0 or a negative reason.
 *
 * The kernel gives the memory of a row that was replaced to the next one without waiting for its
 * readers. So the row is looked up again when it has been read: else a connection could go to a
 * backend of another service. That costs little, since all it looks at has just been looked at.
 */
static __always_inline int pick(const struct frontend_key *key, const struct frontend *frontend,
				struct endpoint *backend)
{
	__u32 id = frontend->id, generation = frontend->generation, count = frontend->count, slot;
	const struct endpoint *found;
	const struct frontend *again;

	if (count) {
		slot = bpf_get_prandom_u32() % count;
		found = slot < NEAR_BACKENDS ? &frontend->near[slot] : far_backend(frontend, slot);
		if (!found)
			return -DROP_STALE_FRONTEND;
		*backend = *found;
	}
	again = bpf_map_lookup_elem(&frontends, key);
	if (!again || again->id != id || again->generation != generation)
		return -DROP_STALE_FRONTEND;
	return count ? 0 : -DROP_NO_BACKEND;
}

/*
 * The backend that this socket already sends to, while it is in the service; else any.
 *
 * A protocol over unconnected UDP may have state (QUIC has), so the datagrams of a socket stay
 * together, as conntrack keeps them for kube-proxy.
 */
static __always_inline int pick_session(__u64 cookie, const struct endpoint *to,
					const struct frontend_key *frontend_key,
					const struct frontend *frontend, struct endpoint *backend)
{
	struct session_key key = { .cookie = cookie, .frontend = *to };
	struct session *found = bpf_map_lookup_elem(&sessions, &key);
	struct session session = { .frontend = frontend->id, .generation = frontend->generation };
	int ret;

	if (found) {
		session.backend = found->backend;
		if (found->frontend == frontend->id &&
		    found->generation == frontend->generation) {
			*backend = session.backend;
			return 0;
		}
	}
	if (!found || !serves(frontend, &session.backend)) {
		ret = pick(frontend_key, frontend, &session.backend);
		if (ret < 0)
			return ret;
	}
	bpf_map_update_elem(&sessions, &key, &session, BPF_ANY);
	*backend = session.backend;
	return 0;
}

/* Remember what this socket believes to talk to; the usual datagram finds it remembered. */
static __always_inline void remember(__u64 cookie, const struct endpoint *backend,
				     const struct endpoint *frontend)
{
	struct connection_key key = { .cookie = cookie, .backend = *backend };
	const struct endpoint *found = bpf_map_lookup_elem(&connections, &key);

	if (!found || !endpoint_equal(found, frontend))
		bpf_map_update_elem(&connections, &key, frontend, BPF_ANY);
}

/* Replace the frontend `to` by a backend: 1 if it was one, 0 if not, or a negative reason. */
static __always_inline int to_backend(struct bpf_sock_addr *ctx, struct endpoint *to, bool session)
{
	struct frontend_key key = {
		.ip = { to->ip[0], to->ip[1], to->ip[2], to->ip[3] },
		.port = to->port,
		.protocol = ctx->protocol,
	};
	struct frontend *frontend = bpf_map_lookup_elem(&frontends, &key);
	struct endpoint backend;
	__u64 cookie;
	int ret;

	if (!frontend)
		return 0;
	cookie = bpf_get_socket_cookie(ctx);
	ret = session ? pick_session(cookie, to, &key, frontend, &backend)
		      : pick(&key, frontend, &backend);
	if (ret == -DROP_STALE_FRONTEND) {
		/* The service has just changed: its old generation is gone, the new complete. */
		frontend = bpf_map_lookup_elem(&frontends, &key);
		if (!frontend)
			return 0;
		ret = pick(&key, frontend, &backend);
	}
	if (ret < 0)
		return ret;
	remember(cookie, &backend, to);
	*to = backend;
	return 1;
}

/* Replace the backend `from` by the frontend that the socket believes to talk to. */
static __always_inline bool to_frontend(struct bpf_sock_addr *ctx, struct endpoint *from)
{
	struct connection_key key = { .cookie = bpf_get_socket_cookie(ctx), .backend = *from };
	const struct endpoint *frontend = bpf_map_lookup_elem(&connections, &key);

	if (!frontend)
		return false;
	*from = *frontend;
	return true;
}

static __always_inline void read4(struct bpf_sock_addr *ctx, struct endpoint *address)
{
	address_map4(address->ip, ctx->user_ip4);
	address->port = ctx->user_port;
	address->pad = 0;
}

static __always_inline void write4(struct bpf_sock_addr *ctx, const struct endpoint *address)
{
	ctx->user_ip4 = address->ip[3];
	ctx->user_port = address->port;
}

static __always_inline void read6(struct bpf_sock_addr *ctx, struct endpoint *address)
{
	address->ip[0] = ctx->user_ip6[0];
	address->ip[1] = ctx->user_ip6[1];
	address->ip[2] = ctx->user_ip6[2];
	address->ip[3] = ctx->user_ip6[3];
	address->port = ctx->user_port;
	address->pad = 0;
}

static __always_inline void write6(struct bpf_sock_addr *ctx, const struct endpoint *address)
{
	ctx->user_ip6[0] = address->ip[0];
	ctx->user_ip6[1] = address->ip[1];
	ctx->user_ip6[2] = address->ip[2];
	ctx->user_ip6[3] = address->ip[3];
	ctx->user_port = address->port;
}

static __always_inline int refuse(int reason)
{
	count_drop(-reason);
	if (has_set_retval)
		bpf_set_retval(-ECONNREFUSED);
	return REFUSE;
}

static __always_inline int balance4(struct bpf_sock_addr *ctx, bool session)
{
	struct endpoint to;
	int ret;

	read4(ctx, &to);
	ret = to_backend(ctx, &to, session);
	if (ret < 0)
		return refuse(ret);
	if (ret)
		write4(ctx, &to);
	return ALLOW;
}

static __always_inline int balance6(struct bpf_sock_addr *ctx, bool session)
{
	struct endpoint to;
	int ret;

	read6(ctx, &to);
	ret = to_backend(ctx, &to, session);
	if (ret < 0)
		return refuse(ret);
	if (ret)
		write6(ctx, &to);
	return ALLOW;
}

static __always_inline int restore4(struct bpf_sock_addr *ctx)
{
	struct endpoint from;

	read4(ctx, &from);
	if (to_frontend(ctx, &from))
		write4(ctx, &from);
	return ALLOW;
}

static __always_inline int restore6(struct bpf_sock_addr *ctx)
{
	struct endpoint from;

	read6(ctx, &from);
	if (to_frontend(ctx, &from))
		write6(ctx, &from);
	return ALLOW;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return balance4(ctx, false);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return balance6(ctx, false);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return balance4(ctx, true);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return balance6(ctx, true);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return restore4(ctx);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return restore6(ctx);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return restore4(ctx);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return restore6(ctx);
}

char LICENSE[] SEC("license") = "Apache-2.0"; /* no helper in here is for GPL programs only */
