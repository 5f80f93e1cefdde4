"""A large cluster in a real API server, from there into another cluster's maps."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http import HTTPStatus
from http.client import HTTPSConnection
from ipaddress import IPv4Address
from pathlib import Path
from ssl import create_default_context
from typing import Any, Final

import msgspec

from agent.kernel import inspect
from clustermesh.model import L4Address, Protocol
from clustermesh.sandbox import process
from clustermesh.sandbox.cache import UnavailableError
from clustermesh.sandbox.kube.control_plane import API_PORT, ControlPlane
from clustermesh.sandbox.kube.programs import kube_assets
from clustermesh.sandbox.namespace import run_inside
from clustermesh.sandbox.process import Process

from .bed import Bed, bed, until
from .inside.fill import service_name
from .inside.populate import ENDPOINTS, SLICES
from .maps import ServiceMaps, service_maps
from .measurement import Bars, Distribution, Goal, Measurement, Say, Table, percentile
from .usage import MB, cpu_seconds, memory, wait_until_idle

_TITLE: Final = "A large cluster in a real API server"
_CANARIES: Final = 30.0  # seconds
_MEGABYTES: Final = 250.0
_MEDIAN: Final = 50.0  # milliseconds
_P99: Final = 200.0
_CHANGED: Final = service_name(0)
_PORT: Final = 8080
_MAPS: Final = "in a peer's maps"

_TEXT: Final = """\
A kube-apiserver with an etcd of its own holds {services:,} global Services, an EndpointSlice for
each with {per_service} endpoints, {endpoints:,} Pods that these are, and {nodes:,} Nodes. An
apiserver of ours that knows nothing yet is started as a process, with an empty etcd beside it; the
clock runs from then. A kind's canary is the key that says that all of that kind is in etcd. **In a
peer's maps** is when the pinned BPF maps of a node of cluster2, which has the same Services without
endpoints of its own, hold every endpoint. The peak is that of the resident set until it is idle
again.

Then one EndpointSlice is patched, over a connection that is open, and the clock stops when a lookup
in that node's pinned map gives the new backend. Between are the API server and its etcd with a disk
under it, the watch, the apiserver's rules, its etcd, mutual TLS, the agent's rules, the maps.
{changes} changes come at random moments, half a second apart at most. **After the answer** leaves
out the time until the API server has answered that it stored the change.

All of it shares one machine: the API server and its etcd, the apiserver and its etcd, the peer's
etcd and agent, and what measures.
"""


def measure(say: Say, *, quick: bool) -> Measurement:
    """Have an apiserver list it all, and then change one endpoint to and fro."""
    services, nodes, changes = (500, 100, 20) if quick else (5_000, 1_000, 200)
    try:
        programs = kube_assets()
    except UnavailableError as error:
        say(f"skipped: {error}")
        return Measurement(_TITLE, f"Not measured in this run: {error}.", [], [], [])
    with bed("kubernetes", pods=0) as sandbox:
        plane = _prepare(sandbox, programs, services, nodes)
        say(f"{services:,} Services are in the API server, with {nodes:,} Nodes")
        peer = sandbox.node(2)
        with service_maps(sandbox.sandbox.bpffs(peer)) as maps:
            apiserver, seconds = _list(sandbox, plane, maps, services * ENDPOINTS)
            cpu = cpu_seconds(apiserver)
            _check(sandbox, services)
            wait_until_idle(apiserver)
            used = memory(apiserver)
            last = max(when for kind, when in seconds.items() if kind != _MAPS)
            say(f"{last:.1f} s to the last canary, {used.peak / MB:.0f} MB at most")
            wait_until_idle(sandbox.running(peer.place))
            whole, answered = _change(sandbox, plane, maps, changes)
    median, p99 = percentile(whole, 0.5), percentile(whole, 0.99)
    say(f"{median:.1f} ms, 99 % within {p99:.1f} ms")
    return Measurement(
        title=_TITLE,
        text=_TEXT.format(
            services=services,
            per_service=ENDPOINTS,
            endpoints=services * ENDPOINTS,
            nodes=nodes,
            changes=changes,
        ),
        goals=[
            Goal(f"{services:,} Services of Kubernetes, all canaries", last, _CANARIES, "s"),
            Goal("the same, peak memory of the apiserver (RSS)", used.peak / MB, _MEGABYTES, "MB"),
            Goal("a change of an EndpointSlice, median", median, _MEDIAN, "ms"),
            Goal("a change of an EndpointSlice, p99", p99, _P99, "ms"),
        ],
        tables=[
            Table(
                ["CPU time", "idle RSS", "idle PSS"],
                [[f"{cpu:.1f} s", f"{used.rss / MB:.0f} MB", f"{used.pss / MB:.0f} MB"]],
            ),
            Table(
                ["one change", "least", "p50", "p90", "p99", "most"],
                [_row("from the patch", whole), _row("after the answer", answered)],
            ),
        ],
        plots=[
            Bars(
                "kubernetes",
                "Seconds until all of a kind is in etcd, and in a peer's maps",
                "s",
                list(seconds),
                {"seconds": list(seconds.values())},
                goal=_CANARIES,
            ),
            Distribution(
                "kubernetes-changes",
                "From an EndpointSlice to the map of a node in cluster2",
                "ms",
                {"from the patch": whole, "after the answer": answered},
                goal=_MEDIAN,
            ),
        ],
    )


def _prepare(sandbox: Bed, programs: Path, services: int, nodes: int) -> ControlPlane:
    """Have everything there but the apiserver: cluster1 in Kubernetes, an empty etcd, a peer."""
    exporting, peer = sandbox.cluster(1), sandbox.cluster(2)
    for name in ("cluster1/apiserver", "cluster1/node1", "cluster2/apiserver"):
        sandbox.stop(name)
    sandbox.run_module(
        peer.control,
        "fill",
        f"--cluster={peer.name}",
        f"--id={peer.id}",
        f"--certificates={sandbox.certificates(peer)}",
        f"--services={services}",
        f"--first-frontend={peer.service_cidrs.v4[1024]}",
    )
    plane = _start_kubernetes(sandbox, programs)
    sandbox.run_module(
        exporting.control,
        "populate",
        f"--kubeconfig={plane.kubeconfig}",
        f"--nodes={nodes}",
        f"--services={services}",
        f"--first-frontend={exporting.service_cidrs.v4[1024]}",
        timeout=600.0,
    )
    sandbox.stop("cluster1/etcd")
    shutil.rmtree(sandbox.sandbox.home(exporting.control) / "etcd")
    sandbox.start("cluster1/etcd")
    return plane


def _start_kubernetes(sandbox: Bed, programs: Path) -> ControlPlane:
    """Start an API server beside cluster1's etcd. It goes with the sandbox."""
    cluster = sandbox.cluster(1)
    control = cluster.control
    directory = sandbox.sandbox.home(control) / "kubernetes"
    directory.mkdir()
    plane = ControlPlane(
        directory,
        cluster.name,
        control.addresses.v4,
        programs,
        controllers=(),  # nobody waits for their work
        service_cidrs=[str(cidr) for cidr in cluster.service_cidrs],
    )
    plane.prepare()
    for name, command in (("etcd", plane.etcd()), ("kube-apiserver", plane.apiserver())):
        process.start(
            command,
            namespace=sandbox.sandbox.namespace(control),
            cgroup=sandbox.cgroup(control),
            log=directory / f"{name}.log",
            pid_file=directory / f"{name}.pid",
        )
    return plane


def _start_apiserver(sandbox: Bed, plane: ControlPlane) -> Process:
    """Start cluster1's apiserver as it was, but for the source."""
    (part,) = sandbox.world.find("cluster1/apiserver")
    command = [word for word in sandbox.world.command(part) if not word.startswith("--source=")]
    home = sandbox.sandbox.home(part.place)
    return process.start(
        [*command, "--source=kube", f"--kubeconfig={plane.kubeconfig}"],
        namespace=sandbox.sandbox.namespace(part.place),
        cgroup=sandbox.cgroup(part.place),
        log=part.log,
        pid_file=home / "apiserver.pid",
    )


def _list(
    sandbox: Bed, plane: ControlPlane, maps: ServiceMaps, backends: int
) -> tuple[Process, Mapping[str, float]]:
    """The apiserver, and the seconds from its start: by kind to its canary, and to the maps."""
    cluster = sandbox.cluster(1)
    with ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        apiserver = _start_apiserver(sandbox, plane)
        canaries = pool.submit(
            sandbox.run_module,
            cluster.control,
            "canaries",
            f"--cluster={cluster.name}",
            f"--certificates={sandbox.certificates(cluster)}",
        )
        until(
            lambda: maps.count()[1] == backends,
            "everything in a peer's maps",
            timeout=120,
            every=0.1,
        )
        filled = time.monotonic()
        found = canaries.result()
    rows = {kind: count for kind, (_, count) in found.items()}
    assert rows["endpoints"] == backends, f"the canary came before its rows: {rows}"
    seconds = {kind: moment - started for kind, (moment, _) in found.items()}
    return apiserver, {**seconds, _MAPS: filled - started}


def _check(sandbox: Bed, services: int) -> None:
    """See that it is not only as many as there should be, but each in its place."""
    rows = inspect.frontends(sandbox.sandbox.bpffs(sandbox.node(2)))
    assert len(rows) == services, len(rows)
    assert all(len(row.backends) == ENDPOINTS for row in rows)
    assert len({backend for row in rows for backend in row.backends}) == services * ENDPOINTS


def _change(
    sandbox: Bed, plane: ControlPlane, maps: ServiceMaps, changes: int
) -> tuple[Sequence[float], Sequence[float]]:
    """The milliseconds of each change: of all, and of what was left after the answer."""
    context = create_default_context(cafile=str(plane.ca))
    context.load_cert_chain(*plane.admin)
    frontend = L4Address(sandbox.cluster(2).service_cidrs.v4[1024], 80, Protocol.TCP)
    moments = random.Random(1)
    whole, answered = [], []
    with closing(HTTPSConnection(str(plane.address), API_PORT, context=context)) as connection:
        namespace = sandbox.sandbox.namespace(sandbox.cluster(1).control)
        run_inside(namespace, connection.connect)  # a socket stays in its namespace
        for change in range(-2, changes):  # the first ones warm up
            ip = IPv4Address("10.128.0.100") + change % 2
            before = time.monotonic()
            _patch(connection, ip)
            answer = time.monotonic()
            backend = L4Address(ip, _PORT, Protocol.TCP)
            until(
                partial(maps.has_only, frontend, backend),
                f"{backend} behind {frontend}",
                timeout=10,
                every=0.0002,
            )
            after = time.monotonic()
            if change >= 0:
                whole.append((after - before) * 1000)
                answered.append((after - answer) * 1000)
            time.sleep(moments.random() / 2)
    return whole, answered


def _patch(connection: HTTPSConnection, endpoint: IPv4Address) -> None:
    """Have one endpoint instead of what there was."""
    patch: Mapping[str, Any] = {
        "endpoints": [{"addresses": [str(endpoint)], "conditions": {"ready": True}}]
    }
    connection.request(
        "PATCH",
        SLICES.path(_CHANGED.name, _CHANGED.namespace),
        msgspec.json.encode(patch),
        {"Content-Type": "application/merge-patch+json"},
    )
    with connection.getresponse() as response:
        said = response.read()
    assert response.status == HTTPStatus.OK, said


def _row(name: str, milliseconds: Sequence[float]) -> Sequence[str]:
    return [
        name,
        *(f"{percentile(milliseconds, share):.1f} ms" for share in (0, 0.5, 0.9, 0.99, 1)),
    ]
