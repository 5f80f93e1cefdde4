"""
Routes to nowhere, in our own table, behind those to the pods of other clusters.

One counts while the other is missing: before there is a way that encrypts, while a device is made
anew, and for a time after a cluster has left. It does so whatever devices there are, and while the
agent is dead.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from typing import Final

from agent.kernel.route_messages import KernelRoute
from agent.kernel.routes import RouteSocket
from agent.rows import RouteKey
from clustermesh.model import IPNetwork

NOWHERE: Final = KernelRoute("")


class BackstopTarget:
    """A `Target` of routes to nowhere, by prefix."""

    def __init__(self, routes: RouteSocket) -> None:
        """Use a socket with a metric of its own, above that of other routes."""
        self._routes = routes

    async def actual(self) -> Mapping[IPNetwork, KernelRoute]:
        """Those that are there."""
        return {key.prefix: route for key, route in (await self._routes.dump()).items()}

    async def apply(
        self, puts: Mapping[IPNetwork, KernelRoute], deletes: Collection[IPNetwork]
    ) -> Mapping[IPNetwork, OSError]:
        """Add and delete, in bulk."""
        wanted = {RouteKey(prefix): route for prefix, route in puts.items()}
        failed = await self._routes.apply(wanted, [RouteKey(prefix) for prefix in deletes])
        return {key.prefix: error for key, error in failed.items()}

    async def drift(self) -> AsyncIterator[Collection[IPNetwork] | None]:
        """End at once: who takes one away takes what stands before it too, and that is heard."""
        return
        yield  # makes this a generator
