"""
The daemons of a cluster, asked through its API server: nothing else of it need be reachable.

What listens on its pod's address is asked by the API server's proxy. An agent listens on its node's
loopback, unless told otherwise; so it is asked from within, as `kubectl exec` would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from clustermesh.errors import UserError
from clustermesh.kube import Kube, KubeError
from clustermesh.settings import TcpAddress, parse_address
from clustermesh.status import DAEMON_STATUS, DaemonStatus

from .installation import find_apiserver
from .objects import PODS, Metadata, items, selector

AT_ONCE: Final = 16
"""Pods asked at the same time: a thousand agents must not make a thousand connections."""

_EXTRA: Final = 30.0
"""Seconds that a command which waits by itself may take longer: it starts, and says why it ends."""


class _Container(msgspec.Struct, frozen=True):
    name: str
    args: list[str] = []


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    node_name: str = ""
    containers: list[_Container] = []


class _Waiting(msgspec.Struct, frozen=True):
    reason: str = ""
    message: str = ""


class _Terminated(msgspec.Struct, frozen=True, rename="camel"):
    exit_code: int = 0
    reason: str = ""
    message: str = ""


class _State(msgspec.Struct, frozen=True):
    waiting: _Waiting | None = None
    terminated: _Terminated | None = None


class _ContainerStatus(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    restart_count: int = 0
    state: _State = _State()


class _Condition(msgspec.Struct, frozen=True):
    type: str
    status: str
    message: str = ""


class _Status(msgspec.Struct, frozen=True, rename="camel"):
    phase: str = ""
    conditions: list[_Condition] = []
    container_statuses: list[_ContainerStatus] = []


class Pod(msgspec.Struct, frozen=True):
    """A pod of ours."""

    metadata: Metadata = Metadata()
    spec: _Spec = _Spec()
    status: _Status = _Status()

    @property
    def is_ready(self) -> bool:
        """Whether Kubernetes takes it for ready."""
        return any(c.type == "Ready" and c.status == "True" for c in self.status.conditions)

    @property
    def obstacle(self) -> str:
        """Why it does not run, as Kubernetes says; empty if it does."""
        for one in self.status.container_statuses:
            if one.state.waiting is not None:
                return f"{one.name}: {one.state.waiting.reason} {one.state.waiting.message}".strip()
            if (ended := one.state.terminated) is not None:
                why = ended.message or ended.reason
                return f"{one.name} ended with exit code {ended.exit_code}: {why}"
        if self.status.phase == "Running":
            return ""
        unmet = (c.message for c in self.status.conditions if c.status == "False" and c.message)
        return next(unmet, f"it is {self.status.phase or 'unknown'}")

    def listens(self, component: str) -> TcpAddress | None:
        """Where its daemon listens; the host may be a variable of the pod."""
        for container in self.spec.containers:
            for argument in container.args if container.name == component else ():
                flag, _, value = argument.partition("=")
                if flag == "--listen":
                    address = parse_address(value)
                    return address if isinstance(address, TcpAddress) else None
        return None


class _Report(msgspec.Struct, frozen=True):
    """What `clustermesh status -o json` prints."""

    agent: DaemonStatus | None = None
    apiserver: DaemonStatus | None = None
    troubles: list[str] = []


class Answer(NamedTuple):
    """What a daemon says of itself, or why it does not."""

    pod: Pod
    status: DaemonStatus | None
    failure: str = ""


async def find_pods(kube: Kube, namespace: str, component: str) -> list[Pod]:
    """The pods of a component (agent, apiserver), by node and name."""
    found = await items(kube, PODS, Pod, namespace=namespace, labels=selector(component))
    return sorted(found, key=lambda pod: (pod.spec.node_name, pod.metadata.name))


async def find_agents(kube: Kube, context: str, namespace: str | None) -> list[Pod]:
    """
    The agents of a cluster, by node.

    Raises:
        UserError: nothing is installed there, or no agent runs.
    """
    there = (await find_apiserver(kube, context, namespace)).metadata.namespace
    found = await find_pods(kube, there, "agent")
    if not found:
        raise UserError(
            f"{context} has no pod of an agent",
            hint=f"kubectl --context {context} -n {there} describe daemonset",
        )
    return found


async def ask_all(kube: Kube, pods: Sequence[Pod], component: str) -> list[Answer]:
    """What the daemons say, in the order of `pods`."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def ask_in_turn(pod: Pod) -> Answer:
        async with turns:
            return await _ask(kube, pod, component)

    return await asyncio.gather(*map(ask_in_turn, pods))


async def _ask(kube: Kube, pod: Pod, component: str) -> Answer:
    if pod.obstacle:
        return Answer(pod, None, pod.obstacle)
    try:
        return Answer(pod, await status_of(kube, pod, component))
    except (KubeError, UserError, msgspec.DecodeError) as error:
        return Answer(pod, None, str(error))


async def status_of(kube: Kube, pod: Pod, component: str) -> DaemonStatus:
    """
    What a daemon says of itself.

    Raises:
        KubeError: it cannot be asked.
        DecodeError: something else answers.
        UserError: it does not run, says the command in its pod.
    """
    if _is_proxied(pod, component):
        return DAEMON_STATUS.decode(await _proxy(kube, pod, component, "status"))
    other = {"agent": "apiserver", "apiserver": "agent"}[component]
    text = await _within(kube, pod, component, "status", f"--{other}=none")
    said = msgspec.json.decode(text, type=_Report)
    answer = said.agent if component == "agent" else said.apiserver
    if answer is None:
        raise UserError("; ".join(said.troubles) or f"no {component} answers there")
    return answer


async def table_of(kube: Kube, pod: Pod, component: str, table: str) -> bytes:
    """
    A table of a daemon, as JSON.

    Raises:
        KubeError: it cannot be asked.
    """
    if _is_proxied(pod, component):
        return await _proxy(kube, pod, component, f"tables/{table}")
    return await _within(kube, pod, component, "show", table)


async def rotate_key(kube: Kube, pod: Pod, timeout: float) -> str:
    """
    Have the agent of a node change its WireGuard key, and return what it says of the new one.

    Args:
        timeout: seconds to wait for the new key.

    Raises:
        KubeError: it cannot be asked, or has none in time; with its reason.
    """
    where = (pod.metadata.namespace, pod.metadata.name, "agent")
    command = ("clustermesh", "encryption", "rotate", f"--wait-timeout={timeout:g}")
    said = await kube.run(*where, *command, timeout=timeout + _EXTRA)
    return said.decode().strip()


def _is_proxied(pod: Pod, component: str) -> bool:
    address = pod.listens(component)
    return address is not None and address.host not in {"127.0.0.1", "::1", "localhost"}


async def _proxy(kube: Kube, pod: Pod, component: str, path: str) -> bytes:
    address = pod.listens(component)
    assert address is not None, "it is proxied"
    where = PODS.path(f"{pod.metadata.name}:{address.port}", pod.metadata.namespace)
    return await kube.fetch(f"{where}/proxy/{path}")


async def _within(kube: Kube, pod: Pod, component: str, *words: str) -> bytes:
    """What our own command prints in the container."""
    there = (pod.metadata.namespace, pod.metadata.name, component)
    return await kube.run(*there, "clustermesh", *words, "--output=json")
