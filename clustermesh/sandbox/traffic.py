"""Calls from pods to a Service of the sandbox, and the backends that the kernel has for it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Final

import msgspec

from agent.kernel import inspect
from clustermesh.errors import UserError
from clustermesh.model import L4Address

from . import process
from .daemons import World
from .model import Cluster, Node, Pod
from .remains import cgroup_mount

_PORT: Final = 80  # of the Service
_WITHIN: Final = 10.0  # seconds for a change to be in every map; it takes milliseconds
_POLL: Final = 0.005
_WATCH_FOR: Final = 1.5  # seconds of calls before and after a loss


class BrokenPromiseError(UserError):
    """What was to be shown is not so."""


class Calls(msgspec.Struct, frozen=True):
    """What `call.py` reports; see there."""

    calls: int
    answered: int
    failed: int
    pods: dict[str, int]
    clients: dict[str, int]
    errors: dict[str, int]
    last_failure: float | None

    def by_cluster(self) -> Counter[str]:
        """Answers, by the cluster that they came from."""
        counts: Counter[str] = Counter()
        for pod, number in self.pods.items():
            counts[pod.partition("/")[0]] += number
        return counts


class Loss(msgspec.Struct, frozen=True):
    """How callers fared while backends went away."""

    calls: int
    failed: int
    last_failure: float | None  # seconds after the stop was asked for


class Traffic:
    """The one Service of a sandbox: who calls it, and who may answer."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._clusters = world.sandbox.members
        self._owners = {
            ip: place.cluster
            for place in world.sandbox.places()
            if isinstance(place, Pod)
            for ip in place.addresses
        }

    def frontends(self, cluster: Cluster) -> list[L4Address]:
        """What the kernel of the cluster's first node takes for addresses of the Service."""
        rows = inspect.frontends(self._world.sandbox.bpffs(cluster.nodes[0]))
        return [row.address for row in rows]

    def call(self, client: Pod, mode: str, version: int, count: int) -> Calls:
        """
        Call the Service from inside a pod.

        Args:
            mode: tcp or udp.
            version: of IP, 4 or 6.

        Raises:
            BrokenPromiseError: the Service has no such address, or the caller died.
        """
        argv = self._caller(client, mode, version, count)
        return _read(subprocess.run(argv, stdout=subprocess.PIPE, check=False).stdout)

    def call_through_loss(self, clients: Iterable[Pod], lost: Cluster, left: Cluster) -> Loss:
        """
        Call without a pause from all `clients` while the servers of `lost` are stopped.

        Raises:
            BrokenPromiseError: a node still has backends of another cluster than `left`.
        """
        with ExitStack() as ended:
            callers = []
            for client in clients:
                forever = self._caller(client, "tcp", 4, 1_000_000, "--every=0.005")
                caller = subprocess.Popen(forever, stdout=subprocess.PIPE)
                ended.enter_context(caller)
                ended.callback(caller.terminate)
                callers.append(caller)
            time.sleep(_WATCH_FOR)
            stopped = time.monotonic()
            for part in self._world.find(f"{lost.name}/pods"):
                part.stop()
            self._world.pods_changed([lost])
            self.wait_for_backends({cluster.name: {left.name} for cluster in self._clusters})
            time.sleep(_WATCH_FOR)
            for caller in callers:
                caller.terminate()
            reports = [_read(caller.communicate()[0]) for caller in callers]
        failures = [r.last_failure - stopped for r in reports if r.last_failure is not None]
        return Loss(
            calls=sum(report.calls for report in reports),
            failed=sum(report.failed for report in reports),
            last_failure=max(failures, default=None),
        )

    def wait_for_backends(self, wanted: Mapping[str, set[str]]) -> float:
        """
        Wait for the maps of every node, and return how many seconds it took.

        Args:
            wanted: by cluster, the clusters whose pods its nodes shall have behind every frontend.

        Raises:
            BrokenPromiseError: some node has others after 10 seconds.
        """
        started = time.monotonic()
        nodes = [(node, wanted[c.name]) for c in self._clusters for node in c.nodes]
        while True:
            wrong = [(n, held, w) for n, w in nodes if (held := self._backends(n)) != w]
            if not wrong:
                return time.monotonic() - started
            if time.monotonic() - started > _WITHIN:
                node, held, expected = wrong[0]
                raise BrokenPromiseError(
                    f"the BPF maps of {node.place} have backends of {names(held)} after "
                    f"{_WITHIN:g} s, and not of {names(expected)}",
                    hint="clustermesh sandbox status may say why",
                )
            time.sleep(_POLL)

    def _backends(self, node: Node) -> set[str]:
        """Whose pods are behind the frontends of a node's maps; nobody's if frontends differ."""
        sets = {
            frozenset(self._owners.get(b.ip, "a stranger") for b in row.backends if b)
            for row in inspect.frontends(self._world.sandbox.bpffs(node))
        }
        return set(sets.pop()) if len(sets) == 1 else set()

    def _caller(self, client: Pod, mode: str, version: int, count: int, *more: str) -> list[str]:
        """The command that calls the Service from inside a pod."""
        sandbox = self._world.sandbox
        addresses = self.frontends(sandbox.cluster(client.cluster))
        host = next((a.ip for a in addresses if a.ip.version == version), None)
        if host is None:
            raise BrokenPromiseError(f"the Service has no IPv{version} address in {client.cluster}")
        call = [sys.executable, "-m", "clustermesh.sandbox.call", mode, str(host), str(_PORT)]
        return process.inside(
            sandbox.namespace(client),
            cgroup_mount() / sandbox.cgroup_of(client),
            [*call, f"--count={count}", "-o", "json", *more],
        )


def names(some: Iterable[str]) -> str:
    """For a sentence: `cluster1 and cluster2`."""
    return " and ".join(sorted(some)) or "nobody"


def _read(output: bytes) -> Calls:
    try:
        return msgspec.json.decode(output, type=Calls)
    except msgspec.DecodeError as error:
        raise BrokenPromiseError(f"a caller did not report: {error}") from error
