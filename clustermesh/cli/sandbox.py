from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import App, Parameter

from clustermesh.cli.client import Output
from clustermesh.errors import UserError
from clustermesh.sandbox import process, remains, topology
from clustermesh.sandbox.daemons import API_SERVER, Part, World, load
from clustermesh.sandbox.kube.programs import kube_assets
from clustermesh.sandbox.model import Cluster, Pod, parse_name, sandbox

app = App(name="sandbox", help="Bring up whole clusters on this machine, in network namespaces.")

Name = Annotated[
    str,
    Parameter(env_var="CLUSTERMESH_SANDBOX", help="Which sandbox: several can live side by side."),
]

File = Annotated[Path, Parameter(allow_leading_hyphen=True)]  # - is one


@app.command
def up(
    *,
    clusters: int = 2,
    nodes: int = 2,
    pods: int = 2,
    routing: Literal["tunnel", "direct", "native"] = "tunnel",
    encryption: Literal["none", "wireguard"] = "none",
    family: Literal["4", "6", "dual"] = "dual",
    api: Literal["dir", "kube"] = "dir",
    agent: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=False)] = (),
    mirror: Annotated[bool, Parameter(negative="")] = False,
    name: Name = "default",
    connect: bool = True,
    timeout: float = 60.0,
) -> None:
    """
    Bring up clusters, with real etcd servers, certificates, BPF programs and tunnels.

    What an earlier sandbox of that name left is taken down first.

    Args:
        clusters: How many.
        nodes: How many in each cluster.
        pods: How many on each node.
        routing: How packets get from cluster to cluster.
        encryption: Whether what goes from cluster to cluster is encrypted.
        family: The versions of IP, of nodes and pods alike.
        api: The Kubernetes of each cluster: manifests in a directory, or a real API server with
            controllers (kube), whose programs `python -m clustermesh.sandbox.kube.programs` makes.
        agent: NAME=VALUE, another setting of all agents, such as mtu=1400, or CLUSTER:NAME=VALUE,
            of those of one cluster; may be repeated.
        mirror: Have apiservers copy the other clusters, and agents read nothing but the copies.
        connect: Connect every cluster with every other.
        timeout: Seconds to wait until all is well: more of them for a slow machine.
    """
    started = time.monotonic()
    wanted = sandbox(
        name,
        clusters=clusters,
        nodes=nodes,
        pods=pods,
        routing=routing,
        encryption=encryption,
        api=api,
        family=family,
        agent=agent,
        mirror=mirror,
    )
    world = World(wanted)
    if world.has_api_servers:
        kube_assets()  # before anything is made: it says how to get them
    with _step(f"network of {clusters} clusters, {nodes} nodes each, {pods} pods each"):
        topology.up(wanted)
    with _step("certificates" if world.has_api_servers else "certificates and manifests"):
        world.prepare()
    if world.has_api_servers:
        with _step("API servers and controllers of Kubernetes"):
            world.start_kubernetes()
        with _step("helm install"):
            world.install()
    with _step("etcd, apiservers, agents and pods") as tell:
        world.start(world.parts())
        if world.has_api_servers:  # then one connects with what is there
            _wait_until_well(world, timeout, tell)
        if connect:
            for first, second in combinations(wanted.members, 2):
                world.connect(first, second)
        _wait_until_well(world, timeout, tell)
    print(f"sandbox {name} is up after {time.monotonic() - started:.1f} s")


@app.command
def down(
    *,
    name: Name = "default",
    every: Annotated[bool, Parameter("--all", negative="")] = False,
) -> None:
    """
    Take a sandbox down: its processes, namespaces, mounts, cgroups and files.

    Whatever is left of one is removed too, however it ended.

    Args:
        every: Take all of them down.
    """
    there = remains.names()
    for one in there if every else [parse_name(name)]:
        remains.down(one)
        print(f"sandbox {one} is down" if one in there else f"there is no sandbox {one}")


@app.command
def status(
    *,
    name: Name = "default",
    output: Output = "table",
) -> int:
    """Sum up every cluster and node. The exit code is 0 only when all is well."""
    from clustermesh.sandbox.overview import print_overview  # noqa: PLC0415 - it imports rich

    world = load(name)
    reports = world.reports()
    if output == "json":
        sys.stdout.buffer.write(
            msgspec.json.encode(
                {
                    part: {
                        **{daemon: msgspec.Raw(body) for daemon, body in report.daemons.items()},
                        "troubles": report.troubles,
                        "warnings": report.warnings,
                    }
                    for part, report in reports.items()
                }
            )
            + b"\n"
        )
    else:
        print_overview(world.sandbox, reports)
    return 1 if any(report.troubles for report in reports.values()) else 0


@app.command(name="exec")
def execute(
    place: str,
    /,
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    name: Name = "default",
) -> None:
    """
    Run a command inside a node, a pod or a control plane, as a process of it.

    Args:
        place: CLUSTER/NODE, CLUSTER/NODE/POD or CLUSTER/control.
        command: The command, after `--`; a shell if there is none.
    """
    world = load(name)
    here = world.sandbox
    found = here.find(place)
    argv = process.inside(
        here.namespace(found),
        remains.cgroup_mount() / here.cgroup_of(found),
        command or [os.environ.get("SHELL", "/bin/sh")],
    )
    os.execvpe(argv[0], argv, {**os.environ, **world.environment(found)})  # noqa: S606 - it is what a user asked for


@app.command
def apply(cluster: str, file: File, /, *, name: Name = "default") -> None:
    """
    Apply Kubernetes manifests to a cluster.

    A Service gets ClusterIPs if it names none, and EndpointSlices for the pods its selector finds.
    With a real API server that is Kubernetes' own work, and anything that it knows may be applied.

    Args:
        cluster: Which: cluster1, cluster2, ...
        file: YAML or JSON with one or several objects; - reads standard input.
    """
    world = load(name)
    manifests = world.manifests(world.sandbox.cluster(cluster))
    for item in manifests.apply(_file(file), world.is_running):
        print(f"{cluster}: {item} applied")


@app.command
def delete(cluster: str, file: File, /, *, name: Name = "default") -> None:
    """
    Delete the objects that a file names from a cluster.

    Args:
        cluster: Which: cluster1, cluster2, ...
        file: As for `apply`.
    """
    world = load(name)
    manifests = world.manifests(world.sandbox.cluster(cluster))
    for item in manifests.delete(_file(file), world.is_running):
        print(f"{cluster}: {item} deleted")


@app.command
def stop(
    *targets: str, name: Name = "default", kill: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """
    Stop processes of a sandbox, and wait until they have ended.

    Args:
        targets: CLUSTER (everything in it), CLUSTER/etcd, CLUSTER/apiserver, CLUSTER/NODE (its
            agent), CLUSTER/NODE/POD or CLUSTER/pods; with real API servers also
            CLUSTER/kube-etcd, /kube-apiserver, /kube-controller-manager and /kubelet.
        kill: Use SIGKILL, as a crash would.
    """
    world = load(name)
    parts = [part for target in _some(targets) for part in world.find(target)]
    for part in reversed(parts):
        part.stop(signal.SIGKILL if kill else signal.SIGTERM)
    _notice(world, parts)
    print(f"stopped {', '.join(part.name for part in parts)}")


@app.command
def start(*targets: str, name: Name = "default") -> None:
    """
    Start processes that were stopped.

    Args:
        targets: As for `stop`.
    """
    world = load(name)
    parts = [part for target in _some(targets) for part in world.find(target)]
    world.start(parts)
    _notice(world, parts)
    print(f"started {', '.join(part.name for part in parts)}")


@app.command
def logs(target: str, /, *, name: Name = "default") -> None:
    """
    Print what the processes of a sandbox have said since it was brought up.

    Args:
        target: As for `stop`.
    """
    for part in load(name).find(target):
        for line in part.log.read_text().splitlines() if part.log.exists() else ():
            print(f"{part.name}: {line}")


@app.command
def connect(first: str, second: str, /, *, name: Name = "default") -> None:
    """
    Connect two clusters: each reads the other's etcd.

    Args:
        first: A cluster.
        second: Another one.
    """
    world = load(name)
    world.connect(*_two(world, first, second))
    print(f"{first} and {second} are connected")


@app.command
def disconnect(first: str, second: str, /, *, name: Name = "default") -> None:
    """
    Disconnect two clusters: each forgets the other.

    Args:
        first: A cluster.
        second: Another one.
    """
    world = load(name)
    clusters = _two(world, first, second)
    world.disconnect(*clusters)
    world.wait_until_forgotten(*clusters)
    print(f"{first} and {second} are disconnected")


def _wait_until_well(world: World, timeout: float, tell: Callable[[str], None]) -> None:
    world.wait_until_well(timeout, lambda well, of: tell(f"{well} of {of} are well"))


def _notice(world: World, parts: list[Part]) -> None:
    """Have Kubernetes know which pods run: also when it was away while that changed."""
    changed = [p for p in parts if isinstance(p.place, Pod) or p.program == API_SERVER]
    world.pods_changed({world.sandbox.cluster(part.place.cluster) for part in changed})


def _two(world: World, first: str, second: str) -> tuple[Cluster, Cluster]:
    if first == second:
        raise UserError(f"{first} and {second} are the same cluster", hint="name two")
    return world.sandbox.cluster(first), world.sandbox.cluster(second)


def _some(targets: tuple[str, ...]) -> tuple[str, ...]:
    if not targets:
        raise UserError("nothing to do", hint="name CLUSTER, CLUSTER/etcd, CLUSTER/NODE, ...")
    return targets


def _file(file: Path) -> Path:
    return Path("/dev/stdin") if str(file) == "-" else file


@contextmanager
def _step(what: str) -> Iterator[Callable[[str], None]]:
    """Show that something is going on, and then how long it took."""
    start_ = time.monotonic()
    terminal = sys.stdout.isatty()

    def tell(detail: str) -> None:
        if terminal:
            print(f"\r\033[K… {what}: {detail}", end="", flush=True)

    tell("")
    yield tell
    clear = "\r\033[K" if terminal else ""
    print(f"{clear}✓ {what} ({time.monotonic() - start_:.1f} s)", flush=True)
