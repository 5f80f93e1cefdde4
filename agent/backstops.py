"""
With encryption: the pod CIDRs of other clusters, and for a time those that were; for what pods send
also the addresses of nodes.

Nothing may leave for one in plain text, so what has no other way is led nowhere. When a cluster has
left, connections that are still open go on sending to addresses that are nobody's any more; but its
nodes are reached as if there were no mesh.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from typing import Final

from clustermesh.model import ClusterName, IPNetwork
from clustermesh.state import Table, Watch, Writer

from .rows import Backstop, Cidr, Reserved, RouteKey
from .rules.cidrs import CidrKey, overlapping

HOLD: Final = 1000.0
"""Seconds: Linux gives a connection up that has not been answered for 924 (tcp_retries2)."""
_CLAIMED_WITHIN: Final = 60.0
"""Seconds, in which the cluster of a node that an earlier agent has known may have been read."""


async def keep_backstops(
    cidrs: Table[CidrKey, Cidr],
    reserved: Table[IPNetwork, Reserved],
    writer: Writer[RouteKey, Backstop],
    own: ClusterName,
    found: Iterable[RouteKey],
) -> None:
    """
    Keep `writer` at what shall be led nowhere, until cancelled.

    A pod CIDR that nobody claims any more stays for `HOLD` seconds. What has come to be our own
    cluster's or this node's does not stay: what those need must not be held back.

    Args:
        found: what an earlier agent has left. It is not known since when nobody claims it.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    held = {  # until when, in event-loop time
        key: began + (_CLAIMED_WITHIN if key.from_pods else HOLD) for key in found
    }
    watch = Watch(cidrs, context=(reserved,))
    try:
        while True:
            now = loop.time()
            claims = list(_claims(cidrs))
            claimed = {
                RouteKey(key.cidr, claim.is_node)
                for key, claim in claims
                if claim.cluster != own and not (claim.is_node and _is_reached_plainly(claim))
            }
            gone = writer.own.keys() - claimed - held.keys()
            held |= {key: now + HOLD for key in gone if not key.from_pods}
            ours = {key.cidr for key, claim in claims if claim.cluster == own}
            pods = [key.prefix for key in held if not key.from_pods]
            taken = ours | overlapping(pods, ours | set(reserved.keys()))
            held = {
                key: until
                for key, until in held.items()
                if until > now and key not in claimed and key.prefix not in taken
            }
            writer.replace(
                {
                    **dict.fromkeys(claimed, Backstop()),
                    **dict.fromkeys(held, Backstop(is_held=True)),
                }
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(held.values(), default=None)):
                    await anext(watch)
    finally:
        watch.close()


def _claims(cidrs: Table[CidrKey, Cidr]) -> Iterator[tuple[CidrKey, Cidr]]:
    for key in cidrs.keys():
        claim = cidrs.first(key)
        if claim is not None and not claim.refused:
            yield key, claim


def _is_reached_plainly(node: Cidr) -> bool:
    """Whether pods reach a node as if there were no mesh, and are to do so."""
    return bool(node.closed or node.unrouted)
