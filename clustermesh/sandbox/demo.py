"""
`make demo`: two clusters become one network, before your eyes.

Every step says what it shows, shows it, and holds it against what was promised. The first promise
that is not kept ends the demo with exit code 1. The sandbox stays up, to look around in.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import yaml
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.kernel import inspect
from clustermesh.cli import sandbox as command
from clustermesh.errors import UserError

from .daemons import load
from .model import Cluster, Pod
from .traffic import BrokenPromiseError, Calls, Traffic, names

_SERVICE: Final = Path(__file__).parents[2] / "examples/echo.yaml"
_CALLS: Final = 100
_FEW_CALLS: Final = 40  # that all meet one cluster by chance: 1 in 10^12
_FAILURES_FOR: Final = 1.0  # seconds after a loss in which a call may fail
_WIDTH: Final = 100  # characters
_BAR: Final = 40


def main() -> int:
    """Give the demo, and return the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=(__doc__ or "").strip())
    default = os.environ.get("CLUSTERMESH_SANDBOX", "default")
    parser.add_argument("--name", default=default, help=f"of the sandbox ({default})")
    name = parser.parse_args().name
    console = Console(highlight=False)
    console.width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    try:
        Demo(name, console).run()
    except UserError as error:
        console.print()
        kind = "not as promised" if isinstance(error, BrokenPromiseError) else "error"
        console.print(Text(f"{kind}: {error.args[0]}", "red"), soft_wrap=True)
        if error.hint:
            console.print(Text(f"hint: {error.hint}"), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


class Demo:
    """The story, step by step."""

    def __init__(self, name: str, console: Console) -> None:
        self._name = name
        self._console = console
        self._steps = 0

    def run(self) -> None:
        """
        Tell all of it.

        Raises:
            BrokenPromiseError: something is not as it was said to be.
            UserError: there cannot be a sandbox here.
        """
        self._console.print(Text("Two clusters become one network", "bold"))
        self._say(
            "Real etcd servers with mutual TLS, real apiservers and agents, real BPF programs and "
            "a real VXLAN tunnel, in network namespaces of this machine. It takes less than half a "
            "minute, and touches nothing outside of them."
        )
        self._bring_up()
        self._apply_service()
        self._call_service()
        self._show_addresses()
        self._prefer_local()
        self._lose_backends()
        self._sum_up()
        self._look_around()

    def _bring_up(self) -> None:
        self._step(
            "Two clusters of two nodes",
            "Each has an etcd, an apiserver, and an agent on every node, and is given nothing of "
            "the other but a certificate to read its etcd with.",
        )
        command.up(name=self._name)
        self._world = load(self._name)
        self._clusters = self._world.sandbox.members
        self._traffic = Traffic(self._world)

    def _apply_service(self) -> None:
        self._step(
            "One Service in both",
            f"The same file, {_SERVICE.parent.name}/{_SERVICE.name}, goes to both clusters. Each "
            "gives it a ClusterIP of its own; behind each are the pods of both.",
        )
        taken = self._apply("none", expected=self._everybody())
        for cluster in self._clusters:
            ips = sorted({str(a.ip) for a in self._traffic.frontends(cluster)}, key=len)
            self._line(f"{cluster.name}: service/default/echo has {' and '.join(ips)}")
        self._line(f"in the BPF maps of all {self._node_count()} nodes after {taken * 1000:.0f} ms")

    def _call_service(self) -> None:
        self._step(
            "Both clusters answer both",
            f"A pod of each cluster connects {_CALLS} times to its own cluster's address. A BPF "
            "program picks the backend before there is any packet.",
        )
        for client in self._clients():
            report = self._traffic.call(client, "tcp", 4, _CALLS)
            self._bars(client, report)
            self._expect_answers_from(report, self._names(), client)

    def _show_addresses(self) -> None:
        self._step(
            "TCP and UDP, IPv4 and IPv6, and nobody hides behind an address",
            "A server sees the address of the very pod that called it, in the other cluster too: "
            "policies and logs go on making sense.",
        )
        table = Table(box=None, pad_edge=False, header_style="bold")
        for header in ("CALLED FROM", "OVER", *(f"BY {name.upper()}" for name in self._names())):
            table.add_column(header)
        table.add_column("CLIENT, AS ALL SERVERS SAW IT")
        for client in self._clients():
            for mode in ("tcp", "udp"):
                for version in (4, 6):
                    report = self._traffic.call(client, mode, version, _FEW_CALLS)
                    self._expect_answers_from(report, self._names(), client)
                    self._expect_own_address(report, client, version)
                    counts = report.by_cluster()
                    table.add_row(
                        client.place,
                        f"{mode.upper()}, IPv{version}",
                        *(f"{counts[name]} of {report.calls}" for name in self._names()),
                        Text(next(iter(report.clients)), "green"),
                    )
        self._print(table)
        node = self._clusters[0].nodes[0]
        carried = inspect.counters(self._world.sandbox.bpffs(node))
        both = ", ".join(f"{sums.packets:,} {way.name.lower()}" for way, sums in carried.items())
        self._line(f"packets in the tunnel of {node.place} so far: {both}")
        if not all(sums.packets for sums in carried.values()):
            raise BrokenPromiseError(f"the tunnel of {node.place} has not been used: {both}")

    def _prefer_local(self) -> None:
        self._step(
            "Affinity: local",
            "One annotation, and each cluster keeps to its own pods while it has any. The others "
            "stand by.",
        )
        own = {name: {name} for name in self._names()}
        taken = self._apply("local", expected=own)
        self._line(f"in all maps after {taken * 1000:.0f} ms")
        for client in self._clients():
            report = self._traffic.call(client, "tcp", 4, _CALLS)
            self._bars(client, report)
            self._expect_answers_from(report, [client.cluster], client)
        taken = self._apply("none", expected=self._everybody())
        self._line(f"and back to none: in all maps after {taken * 1000:.0f} ms")
        for client in self._clients():
            report = self._traffic.call(client, "tcp", 4, _FEW_CALLS)
            self._bars(client, report)
            self._expect_answers_from(report, self._names(), client)

    def _lose_backends(self) -> None:
        lost, left = self._clusters[1], self._clusters[0]
        self._step(
            f"{lost.name} loses every backend, and the Service goes on",
            f"A pod of each cluster calls without a pause while all servers of {lost.name} are "
            f"stopped. Calls may fail for {_FAILURES_FOR:g} second at most.",
        )
        loss = self._traffic.call_through_loss(self._clients(), lost, left)
        self._line(f"{loss.calls:,} calls from both clusters before, during and after the stop")
        if loss.last_failure is None:
            self._line("no call failed")
        else:
            self._line(
                f"{loss.failed} failed, the last one {loss.last_failure * 1000:.0f} ms after the "
                "stop was asked for"
            )
            if loss.last_failure > _FAILURES_FOR:
                raise BrokenPromiseError(
                    f"calls failed for {loss.last_failure:.2f} s after the backends of "
                    f"{lost.name} were stopped, instead of {_FAILURES_FOR:g} s at most"
                )
        for client in self._clients():
            report = self._traffic.call(client, "tcp", 4, _CALLS)
            self._bars(client, report)
            self._expect_answers_from(report, [left.name], client)
        self._start_pods(lost)
        taken = self._traffic.wait_for_backends(self._everybody())
        self._line(f"started again, and back in all maps after {taken * 1000:.0f} ms")
        for client in self._clients():
            report = self._traffic.call(client, "tcp", 4, _FEW_CALLS)
            self._bars(client, report)
            self._expect_answers_from(report, self._names(), client)

    def _sum_up(self) -> None:
        node = self._clusters[0].nodes[0]
        self._step(
            "What the mesh says of itself",
            "On a node, as an operator would ask; and all of the sandbox at a glance.",
        )
        self._run("sandbox", "exec", node.place, "--", "clustermesh", "status")
        self._run("sandbox", "status")

    def _look_around(self) -> None:
        self._console.print()
        self._console.print(Text("All as promised. The sandbox stays up; look around:", "bold"))
        node, pod = self._clusters[0].nodes[0].place, self._clients()[0].place
        name = "" if self._name == "default" else f" --name {self._name}"
        hints = {
            f"exec{name} {pod} -- python -m clustermesh.sandbox.call tcp 10.101.0.1 80": "call it",
            f"exec{name} {pod}": "a shell in a pod; any program of this machine will do",
            f"exec{name} {node} -- clustermesh show frontends": "what the agent wants",
            f"exec{name} {node} -- clustermesh show maps": "what the kernel holds",
            f"logs{name} {node}": "what the agent says",
            f"stop{name} --kill cluster2/etcd": "break something; `start` mends it",
            f"down{name}": "take it all away",
        }
        for verb, meaning in hints.items():
            self._console.print(Text(f"   # {meaning}", "dim"))
            command_line = Text(f"   .venv/bin/clustermesh sandbox {verb}", "cyan")
            self._console.print(command_line, soft_wrap=True)
        self._say("docs/tutorial.md goes on from here.")

    # What is done

    def _apply(self, affinity: str, *, expected: Mapping[str, set[str]]) -> float:
        """Apply the Service everywhere; seconds until every map has the `expected` backends."""
        service = yaml.safe_load(_SERVICE.read_text())
        service["metadata"]["annotations"]["service.cilium.io/affinity"] = affinity
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(service, file)
            file.flush()
            for cluster in self._clusters:
                manifests = self._world.manifests(cluster)
                manifests.apply(Path(file.name), self._world.is_running)
        return self._traffic.wait_for_backends(expected)

    def _start_pods(self, cluster: Cluster) -> None:
        self._world.start(self._world.find(f"{cluster.name}/pods"))
        self._world.pods_changed([cluster])

    def _run(self, *arguments: str) -> None:
        """Run our own command, as a user would, and let it print."""
        group, verb, *rest = arguments
        self._console.print(Text(f"   $ clustermesh {' '.join(arguments)}", "cyan"))
        program = Path(sys.executable).with_name("clustermesh")
        done = subprocess.run([program, group, verb, "--name", self._name, *rest], check=False)
        if done.returncode != 0:
            raise BrokenPromiseError(f"not all is well, as {verb} says above")

    # What is expected

    def _expect_answers_from(self, report: Calls, clusters: Sequence[str], client: Pod) -> None:
        if report.failed or not report.answered:
            raise BrokenPromiseError(
                f"{report.failed} of {report.calls} calls from {client.place} failed: "
                + "; ".join(report.errors)
            )
        found = report.by_cluster()
        if set(found) != set(clusters):
            raise BrokenPromiseError(
                f"{client.place} was answered by {names(found)}, and not by {names(clusters)}"
            )

    def _expect_own_address(self, report: Calls, client: Pod, version: int) -> None:
        own = client.addresses.v4 if version == 4 else client.addresses.v6
        if {ip_address(seen) for seen in report.clients} != {own}:
            raise BrokenPromiseError(
                f"servers saw {client.place} as {names(report.clients)}, and not as {own}"
            )

    # What is said

    def _step(self, title: str, why: str) -> None:
        self._steps += 1
        self._console.print()
        self._console.print(Text(f"{self._steps}  {title}", "bold"))
        self._say(why)

    def _say(self, text: str) -> None:
        self._print(Text(text, "dim"))

    def _line(self, text: str) -> None:
        self._print(Text.assemble(("✓ ", "green"), text))

    def _print(self, what: RenderableType, indent: int = 3) -> None:
        self._console.print(Padding(what, (0, 0, 0, indent), expand=False))

    def _bars(self, client: Pod, report: Calls) -> None:
        counts = report.by_cluster()
        self._print(Text(f"{report.calls} calls from {client.place}"))
        for name, colour in zip(self._names(), ("blue", "magenta"), strict=True):
            bar = "█" * round(_BAR * counts[name] / max(report.calls, 1))
            line = Text.assemble(f"{name} {counts[name]:4} ", (bar, colour))
            self._print(line, indent=5)

    # Who there is

    def _names(self) -> list[str]:
        return [cluster.name for cluster in self._clusters]

    def _clients(self) -> list[Pod]:
        return [cluster.nodes[0].pods[0] for cluster in self._clusters]

    def _everybody(self) -> dict[str, set[str]]:
        return {name: set(self._names()) for name in self._names()}

    def _node_count(self) -> int:
        return sum(len(cluster.nodes) for cluster in self._clusters)


if __name__ == "__main__":
    sys.exit(main())
