"""The pods of this node that are on the fast path: all that there are, while they may be on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Final

from clustermesh.model import IPAddress, IPNetwork
from clustermesh.state import Reconciler, Table

from .kernel.contents import read_pods
from .kernel.fast_path import FastPath
from .kernel.layouts import Medium
from .kernel.netlink import RULE_PRIORITY, Netlink
from .kernel.pods import follow_pods
from .rows import Pod, Routing, Routings
from .targets.pods import PodTarget

log = logging.getLogger(__name__)


class FastPods:
    """Follows the pods of this node, and keeps them on the fast path."""

    def __init__(
        self,
        fast: FastPath,
        pods: Table[IPAddress, Pod],
        netlink: Netlink,
        routings: Routings,
        pod_cidrs: Callable[[], Collection[IPNetwork]],
        *,
        grace: float,
    ) -> None:
        """
        Args:
            pods: is written with those that are found.
            pod_cidrs: this node's own, as they are known at present.
            grace: seconds; see Reconciler.
        """
        self._fast = fast
        self._pods = pods
        self._netlink = netlink
        # After our own rule none matters but to what is not routed by us.
        self._rules_before = None if Routing.NATIVE in routings.in_use else RULE_PRIORITY
        self._pod_cidrs = pod_cidrs
        self.hindrance = ""
        """What keeps all pods from it."""
        self.reconciler: Final[Reconciler[IPAddress, Pod, Pod]] = Reconciler(
            pods, PodTarget(fast), self._wanted, grace=grace
        )

    async def prepare(self, media: Mapping[int, Medium]) -> None:
        """
        Use these devices, and have no pods on the fast path where a packet's mark may decide.

        Marks are given by rules of netfilter, which what is on the fast path never meets.
        """
        self._fast.set_media(media)
        rules = await self._netlink.mark_rules(self._rules_before)
        hindrance = f"routing rules go by marks: {', '.join(map(str, rules))}" if rules else ""
        if hindrance != self.hindrance:
            self.hindrance = hindrance
            log.warning("the fast path is %s", f"off: {hindrance}" if hindrance else "on again")
            self.reconciler.compare_soon()

    async def run(self) -> None:
        """Keep up with the pods until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="follow pods")
            tasks.create_task(self.reconciler.run(), name="reconcile pods")

    async def _follow(self) -> None:
        writer = self._pods.writer("this node")
        before = read_pods(self._fast.pods)
        async for found in follow_pods(self._netlink.ip, self._pod_cidrs, before):
            writer.replace(found)

    def _wanted(self, address: IPAddress, pod: Pod) -> Pod | None:
        del address
        return None if self.hindrance else pod
