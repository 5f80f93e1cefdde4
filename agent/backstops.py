"""
With encryption: the pod CIDRs of other clusters, and for a time those that were.

Nothing may leave for one in plain text, so what has no other way is led nowhere. When a cluster has
left, connections that are still open go on sending to addresses that are nobody's any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from typing import Final

from clustermesh.model import ClusterName, IPNetwork
from clustermesh.state import Table, Watch, Writer

from .rows import Backstop, Cidr, Reserved
from .rules.cidrs import CidrKey, overlapping

HOLD: Final = 1000.0
"""Seconds: Linux gives a connection up that has not been answered for 924 (tcp_retries2)."""


async def keep_backstops(
    cidrs: Table[CidrKey, Cidr],
    reserved: Table[IPNetwork, Reserved],
    writer: Writer[IPNetwork, Backstop],
    own: ClusterName,
    found: Iterable[IPNetwork],
) -> None:
    """
    Keep `writer` at what shall be led nowhere, until cancelled.

    A prefix that nobody claims any more stays for `HOLD` seconds, unless it has come to be our own
    cluster's or this node's: what those need must not be held back.

    Args:
        found: what an earlier agent has left. It is not known since when nobody claims it.
    """
    loop = asyncio.get_running_loop()
    held = dict.fromkeys(found, loop.time() + HOLD)  # until when, in event-loop time
    watch = Watch(cidrs, context=(reserved,))
    try:
        while True:
            now = loop.time()
            claimed = {key.cidr for key, claim in _claims(cidrs) if _is_foreign(claim, own)}
            held |= dict.fromkeys(writer.own.keys() - claimed - held.keys(), now + HOLD)
            ours = {key.cidr for key, claim in _claims(cidrs) if claim.cluster == own}
            taken = overlapping(held, ours | set(reserved.keys()))
            held = {
                prefix: until
                for prefix, until in held.items()
                if until > now and prefix not in claimed and prefix not in taken
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


def _is_foreign(claim: Cidr, own: ClusterName) -> bool:
    return claim.cluster != own and not claim.is_node
