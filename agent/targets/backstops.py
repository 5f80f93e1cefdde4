"""
Routes to nowhere, in our own tables, behind those to the pods and nodes of other clusters.

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

NOWHERE: Final = KernelRoute("")


class BackstopTarget:
    """A `Target` of routes to nowhere."""

    def __init__(self, routes: RouteSocket) -> None:
        """Use a socket with a metric of its own, above that of other routes."""
        self._routes = routes

    async def actual(self) -> Mapping[RouteKey, KernelRoute]:
        """Those that are there."""
        return await self._routes.dump()

    async def apply(
        self, puts: Mapping[RouteKey, KernelRoute], deletes: Collection[RouteKey]
    ) -> Mapping[RouteKey, OSError]:
        """Add and delete, in bulk."""
        return await self._routes.apply(puts, deletes)

    async def drift(self) -> AsyncIterator[Collection[RouteKey] | None]:
        """End at once: who takes one away takes what stands before it too, and that is heard."""
        return
        yield  # makes this a generator
