/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* 16-byte addresses. */
#pragma once

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/types.h>
#include <stdbool.h>

/* Write `ip4` as ::ffff:a.b.c.d. */
static __always_inline void address_map4(__be32 ip[4], __be32 ip4)
{
	ip[0] = 0;
	ip[1] = 0;
	ip[2] = bpf_htonl(0xffff);
	ip[3] = ip4;
}

static __always_inline bool address_is4(const __be32 ip[4])
{
	return ip[0] == 0 && ip[1] == 0 && ip[2] == bpf_htonl(0xffff);
}

static __always_inline bool address_is_zero(const __be32 ip[4])
{
	return (ip[0] | ip[1] | ip[2] | ip[3]) == 0;
}

static __always_inline bool address_equal(const __be32 a[4], const __be32 b[4])
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* 224.0.0.0/4, ff00::/8 */
static __always_inline bool address_is_multicast(const __be32 ip[4])
{
	if (address_is4(ip))
		return (ip[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000);
	return (ip[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}
