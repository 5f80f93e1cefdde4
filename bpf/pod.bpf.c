// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * The fast path at its other ends: what a pod sends, and what the underlay brings without a tunnel.
 * What it is, and what it leaves to the host's stack, is in fast.h.
 *
 * Both hang on devices that are another's, beside programs of others: what is not ours is passed on
 * to those.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

#include "fast.h"
#include "outer.h"
#include "types.h"

/* Whether the pod at this device has the source address, and means us to route the packet. */
static __always_inline bool is_from_pod(struct __sk_buff *skb, const struct packet *packet)
{
	const struct pod *pod = pod_lookup(packet->source);
	__u8 to[ETH_ALEN];

	if (!pod || pod->port != skb->ifindex || bpf_skb_load_bytes(skb, 0, to, sizeof(to)))
		return false;
	for (int i = 0; i < ETH_ALEN; i++) {
		if (to[i] != pod->gateway[i])
			return false;
	}
	return true;
}

/* Remember what has been seen of a connection by `medium`; whether it is on the fast path. */
static __always_inline bool is_fast_out(const struct packet *packet, const struct flow_key *key,
					struct flow_state *known, enum medium medium)
{
	struct flow_state fresh = {
		.medium = medium,
		.seen_out = 1,
		.seen_in = packet->is_first, /* as good as: nothing of it has been translated */
	};

	if (!known || packet->is_first) {
		bpf_map_update_elem(&flows, key, &fresh, BPF_ANY);
		return packet->is_first;
	}
	if (known->medium != medium)
		known->medium = medium; /* routes have changed */
	if (!known->seen_out)
		known->seen_out = 1;
	return known->seen_in;
}

SEC("tc")
int pod_ingress(struct __sk_buff *skb)
{
	struct bpf_fib_lookup fib = {};
	struct packet packet = {};
	struct flow_state *known;
	const enum medium *medium;
	struct flow_key key;
	__u32 device;
	long found, sent;
	int size;

	size = parse_ip(skb, ETH_HLEN, &packet);
	if (size < 0 || packet.ttl <= 1 || parse_ports(skb, size, &packet) < 0 ||
	    !is_from_pod(skb, &packet))
		return PASS;
	key = flow_out(&packet);
	known = bpf_map_lookup_elem(&flows, &key);
	if (!known && packet.protocol == IPPROTO_TCP && !packet.is_first)
		return PASS; /* the stack has it from before */
	if (!known && !is_remote_pod(packet.destination))
		return PASS;
	found = route(skb, &packet, skb->ifindex, false, &fib);
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return PASS;
	device = fib.ifindex;
	medium = bpf_map_lookup_elem(&media, &device);
	if (!medium || !is_fast_out(&packet, &key, known, *medium))
		return PASS;
	if (decrement_ttl(skb, &packet))
		return TC_ACT_SHOT; /* no memory */
	count_fast(skb, DIRECTION_EGRESS);
	if (*medium == MEDIUM_UNDERLAY)
		return to_next_hop(&fib);
	sent = send_over(skb, &packet);
	return sent == PASS ? bpf_redirect(device, 0) : sent;
}

SEC("tc")
int underlay_ingress(struct __sk_buff *skb)
{
	if (skb->pkt_type != PACKET_HOST)
		return PASS;
	return deliver(skb, MEDIUM_UNDERLAY);
}

/* The kernel lets programs under the GPL only look up routes; these are under either license. */
char LICENSE[] SEC("license") = "GPL";
