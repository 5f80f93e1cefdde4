"""The kernel of this node, where the derived tables are put: the wiring of the targets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from clustermesh.backoff import Backoff
from clustermesh.model import ClusterId, ClusterName, IPAddress, IPNetwork, Node
from clustermesh.state import Reconciler, Watch
from clustermesh.status import Datapath as DatapathStatus

from .backstops import keep_backstops
from .encryption import Encryption
from .fast_pods import FastPods
from .kernel.datapath import Datapath
from .kernel.devices import device_changes, read_devices
from .kernel.facts import Facts, IPInterface
from .kernel.layouts import Medium
from .kernel.netlink import Netlink, device_index
from .kernel.nftables import Nftables
from .kernel.route_messages import KernelRoute
from .lanes import LANES
from .own import OwnNode
from .rows import Device, Reserved, Route, RouteKey, Routing
from .rules.causes import Lookup
from .rules.routes import pod_sources
from .settings import AgentSettings
from .tables import Derived, Read
from .targets.backstops import NOWHERE, BackstopTarget
from .targets.frontends import FrontendTarget
from .targets.guard import GuardTarget
from .targets.ipcache import IpcacheTarget
from .targets.routes import RouteTarget, kernel_route, tunnel_mtu
from .targets.sources import Kept, SourceTarget

log = logging.getLogger(__name__)

_GRACE: Final = 10.0  # seconds
_GRACE_WHEN_EMPTY: Final = 1.0
_SOURCES_WITHIN: Final = 3.0  # seconds
_RETRY_MIN: Final = 0.1  # seconds
_RETRY_MAX: Final = 5.0


class BpfNode:
    """
    BPF programs and maps, our devices and our route table, in this network namespace.

    Programs are attached only when the maps have been filled once: until then whatever an earlier
    agent left attached goes on with its own.
    """

    def __init__(self, settings: AgentSettings, read: Read, derived: Derived, own: OwnNode) -> None:
        self._own = own
        self._settings = settings
        self._routings = settings.routings
        tunnels = Routing.TUNNEL in self._routings.in_use and not settings.encrypts
        self._tunnel = settings.tunnel if tunnels else None
        self._read = read
        self._derived = derived
        self._reserved = read.reserved.writer("this node")
        self._open = AsyncExitStack()
        self._attached = asyncio.Event()
        self._hindrance = ""  # what keeps it from going on at present
        self._fast: FastPods | None = None
        self._facts: Facts | None = None
        self._left_backstops: Sequence[RouteKey] = ()  # by an earlier agent
        self.encryption: Encryption | None = None
        self._reconcilers: dict[str, Reconciler[Any, Any, Any]] = {}

    async def __aenter__(self) -> Self:
        settings, derived = self._settings, self._derived
        self._datapath = Datapath.open(
            settings.bpffs,
            max_connected_clusters=settings.max_connected_clusters,
            tunnel=settings.tunnel,
            fast_path=settings.fast_path == "on",
            guarded=ClusterId(settings.cluster_id) if settings.encrypts else None,
        )
        self._open.callback(self._datapath.close)
        self._netlink = await self._open.enter_async_context(Netlink.open(settings.sysctls))
        self._reserve(await self._netlink.addresses())
        # Maps that are in use are left as they are for longer, while a cluster is yet to be read.
        grace = _GRACE if self._datapath.adopted else _GRACE_WHEN_EMPTY
        sources = SourceTarget(Nftables(), lambda: pod_sources(self._node))
        self._reconcilers = {
            "frontends": Reconciler(
                derived.frontends,
                FrontendTarget(self._datapath),
                lambda _, row: row.active(),
                grace=grace,
            ),
            "ipcache": Reconciler(
                derived.ipcache, IpcacheTarget(self._datapath), lambda _, row: row, grace=grace
            ),
            "routes": Reconciler(
                derived.routes,
                RouteTarget(self._netlink, self._settings.tunnel, self._prepare, sources.wait_for),
                self._kernel_route,
            ),
        }
        self._sources = Reconciler(derived.routes, sources, _kept, grace=grace, retry_min=1.0)
        if self._datapath.fast:
            self._fast = FastPods(
                self._datapath.fast,
                self._read.pods,
                self._netlink,
                self._routings,
                self._pod_cidrs,
                grace=grace,
            )
            self._reconcilers["pods"] = self._fast.reconciler
        if self._datapath.guard:
            self._reconcilers["devices"] = Reconciler(
                self._read.devices, GuardTarget(self._datapath.guard), self._guarded
            )
            self._reconcilers["backstops"] = Reconciler(
                derived.backstops,
                BackstopTarget(self._netlink.backstops),
                lambda *_: NOWHERE,
            )
            self.encryption = await Encryption.open(
                settings, self._read, derived, self._own, self._netlink
            )
            self._open.callback(self.encryption.close)
            self._reconcilers["peers"] = self.encryption.reconciler
            with contextlib.suppress(OSError):
                await self._look()  # what is known from the last time will do
            await self._persist(self._close_plain_ways)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._open.__aexit__(kind, error, trace)

    async def run(self) -> None:
        """See Kernel. Raises UserError if the cgroup or the kernel lacks something."""
        frontends, ipcache, routes, *_ = self._reconcilers.values()
        async with asyncio.TaskGroup() as tasks:
            if self.encryption is not None:
                tasks.create_task(self._keep_backstops(), name="keep backstops")
                tasks.create_task(self._reconcilers["backstops"].run(), name="reconcile backstops")
                if self._datapath.knows_addresses:
                    await self._start_guard(tasks)
            tasks.create_task(frontends.run(), name="reconcile frontends")
            tasks.create_task(ipcache.run(), name="reconcile ipcache")
            # Packets follow a route at once, so the node behind it must be known before.
            await ipcache.synced.wait()
            # So must be that it is not to be masqueraded: a connection keeps what it began with.
            # Where that cannot be had `show routes` says so, and everything else works.
            tasks.create_task(self._sources.run(), name="reconcile sources")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._sources.synced.wait(), _SOURCES_WITHIN)
            if self.encryption is not None:
                # Nothing may pass in plain text before there is a route.
                await self._start_guard(tasks)
                await self._persist(self._prepare)
                tasks.create_task(self.encryption.run(), name="encryption")
                await self.encryption.reconciler.synced.wait()
            tasks.create_task(routes.run(), name="reconcile routes")
            await frontends.synced.wait()
            self._datapath.attach_sockets(self._settings.cgroup)
            await routes.synced.wait()
            if self._fast is not None:
                tasks.create_task(self._fast.run(), name="fast path")
                await self._fast.reconciler.synced.wait()
            self._datapath.settle()
            await self._remove_unused_devices()
            self._attached.set()
            log.info("the datapath is attached: %s routing", self._routings.default)
            async for names in Watch(self._read.nodes):
                if self._settings.node_name in names:
                    routes.compare_soon()  # our own addresses may have changed
                    self._sources.compare_soon()

    def reconcilers(self, table: str) -> Sequence[Reconciler[Any, Any, Any]]:
        """See Kernel."""
        if table not in self._reconcilers:
            return ()
        found = self._reconcilers[table]
        if table != "routes":
            return (found,)
        behind = [self._reconcilers["backstops"]] if self.encryption else []
        return (found, self._sources, *behind)

    def status(self) -> DatapathStatus:
        """See Kernel."""
        drops = {reason.name: count for reason, count in self._datapath.drops().items() if count}
        return DatapathStatus(
            mode="bpf",
            routing=self._routings.default,
            attached=self._attached.is_set(),
            drops=drops,
            fast_path_off=self._fast.hindrance if self._fast else "",
        )

    def unready(self) -> str | None:
        """See Kernel."""
        if self._attached.is_set():
            return None
        if self._hindrance:
            return f"not attached: {self._hindrance}"
        waiting = [name for name, r in self._reconcilers.items() if not r.synced.is_set()]
        return f"not attached: waiting for {', '.join(waiting)}"

    async def attached(self) -> None:
        """See Kernel."""
        await self._attached.wait()

    @property
    def facts(self) -> Facts | None:
        """See Kernel."""
        return self._facts

    async def lookup(self, source: IPAddress, target: IPAddress) -> Lookup:
        """See Kernel."""
        taken = await self._netlink.route_to(source, target)
        return Lookup(taken.device, taken.is_ours)

    async def _persist(self, step: Callable[[], Awaitable[object]]) -> None:
        """Take a step until it succeeds. What hinders it is said by `unready`."""
        backoff = Backoff(first=_RETRY_MIN, most=_RETRY_MAX)
        while True:
            try:
                await step()
            except OSError as error:
                if str(error) != self._hindrance:
                    log.warning("not attached: %s", error)
                self._hindrance = str(error)
                await asyncio.sleep(backoff.next())
            else:
                self._hindrance = ""
                return

    async def _close_plain_ways(self) -> None:
        """
        Let nothing pass any more by the ways that an agent which did not encrypt has made.

        Before anything else: what is lost until there are other ways is not seen by anybody.
        """
        if self._datapath.knows_addresses:
            for index, device in (await read_devices()).items():
                if (is_uplink := self._guarded(index, device)) is not None:
                    self._datapath.guard_device(index, is_uplink=is_uplink)
        self._datapath.detach_fast_path()
        routes, backstops = self._netlink.routes, self._netlink.backstops
        encrypted = {lane.device for lane in LANES}
        plain = [
            key for key, route in (await routes.dump()).items() if route.device not in encrypted
        ]
        await self._netlink.ensure_rules()
        for error in (await backstops.apply(dict.fromkeys(plain, NOWHERE), ())).values():
            raise error
        for error in (await routes.apply({}, plain)).values():
            raise error
        await self._netlink.remove_tunnel_devices()
        self._left_backstops = list(await backstops.dump())

    async def _keep_backstops(self) -> None:
        await keep_backstops(
            self._derived.cidrs,
            self._read.reserved,
            self._derived.backstops.writer("claims"),
            ClusterName(self._settings.cluster_name),
            self._left_backstops,
        )

    async def _start_guard(self, tasks: asyncio.TaskGroup) -> None:
        """Have all devices guarded, those too that come later. Idempotent."""
        devices = self._reconcilers["devices"]
        if not devices.synced.is_set():
            tasks.create_task(self._follow_devices(), name="follow devices")
            tasks.create_task(devices.run(), name="reconcile devices")
            await devices.synced.wait()

    async def _follow_devices(self) -> None:
        writer = self._read.devices.writer("this node")
        async for found in device_changes():
            writer.replace(found)

    def _guarded(self, index: int, device: Device) -> bool | None:
        """Whether a device is guarded as an uplink; None: it is not, for it encrypts."""
        del index
        if any(device.name == lane.device for lane in LANES):
            return None
        return device.is_uplink or (self._facts is not None and device.name == self._facts.underlay)

    async def _look(self) -> None:
        """Know this node's addresses and its underlay. Raises OSError: ENODEV, it has none."""
        node = self._node
        before = self._facts
        self._facts = await self._netlink.facts(
            node_ips=[ip for kind, ip in node.addresses if kind == "InternalIP"] if node else (),
            pod_cidrs=node.pod_cidrs if node else (),
        )
        if self._settings.mtu:
            self._facts = msgspec.structs.replace(self._facts, given_mtu=self._settings.mtu)
        self._reserve(self._facts.addresses)
        if node is not None:
            health_ips = (self._facts.pod_source(version) for version in (4, 6))
            self._own.learn_addresses(tuple(str(ip) for ip in health_ips if ip is not None))
        if self.encryption and (before is None or before.underlay != self._facts.underlay):
            self._reconcilers["devices"].compare_soon()

    async def _prepare(self) -> None:
        """Have the device and the rules that routes need, and know this node's addresses."""
        await self._look()
        assert self._facts is not None
        await self._netlink.ensure_forwarding(self._facts.underlay)
        if self.encryption is not None:
            if index := device_index(self._facts.underlay):
                self._datapath.guard_device(index, is_uplink=True)
            self.encryption.underlay(self._facts.given_mtu or self._facts.mtu)
            await self.encryption.look_at_devices()
        if self._tunnel:
            mtu = tunnel_mtu(self._facts)
            device = await self._netlink.ensure_tunnel_device(mtu, self._tunnel)
            self._datapath.attach_tunnel(device)
        if self._fast is not None:
            await self._fast.prepare(dict(self._media()))
        await self._netlink.ensure_rules(pod_sources(self._node))

    def _media(self) -> Iterator[tuple[int, Medium]]:
        """The devices that the fast path may use: none that encrypts, or that must not be used."""
        if self._tunnel and (index := device_index(self._tunnel.device)):
            yield index, Medium.TUNNEL
        if not self._facts or self.encryption or self._routings.in_use == {Routing.TUNNEL}:
            return
        if index := device_index(self._facts.underlay):
            yield index, Medium.UNDERLAY

    def _pod_cidrs(self) -> Sequence[IPNetwork]:
        return self._facts.pod_cidrs if self._facts else ()

    async def _remove_unused_devices(self) -> None:
        """Those of a time when the settings were others, and what stood behind their routes."""
        await self._netlink.remove_tunnel_devices(keep=self._tunnel)
        if self.encryption is None:
            await self._netlink.remove_encrypted_devices()
            await self._netlink.backstops.apply({}, await self._netlink.backstops.dump())

    def _reserve(self, addresses: Iterable[tuple[str, IPInterface]]) -> None:
        """Let no other cluster have the networks that this node is on."""
        self._reserved.replace(
            {a.network: Reserved(f"the network of {device}") for device, a in addresses}
        )

    def _kernel_route(self, key: RouteKey, route: Route) -> KernelRoute | None:
        if self._facts is None:
            return None
        return kernel_route(key, route, self._settings.tunnel, self._facts)

    @property
    def _node(self) -> Node | None:
        """Ours, as its own cluster knows it."""
        name, cluster = self._settings.node_name, self._settings.cluster_name
        return self._read.nodes.rows(name).get(cluster)


def _kept(key: RouteKey, route: Route) -> Kept:
    del key, route  # wherever it leads
    return True
