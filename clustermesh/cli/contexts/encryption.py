"""`clustermesh encryption … --context …`: the agents of whole clusters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clustermesh.errors import UserError
from clustermesh.status import DaemonStatus

from .connect import opened
from .options import run
from .pods import ask_all, find_agents, rotate_key


def statuses_of(
    contexts: Sequence[str], *, namespace: str | None, kubeconfig: Path | None
) -> tuple[list[DaemonStatus], list[str]]:
    """What every agent of the clusters says, and why some say nothing."""

    async def work() -> tuple[list[DaemonStatus], list[str]]:
        said, failures = [], []
        async with opened(kubeconfig, contexts) as kubes:
            for context, kube in kubes.items():
                agents = await find_agents(kube, context, namespace)
                for answer in await ask_all(kube, agents, "agent"):
                    if answer.status is None:
                        failures.append(f"{context}: {answer.pod.spec.node_name}: {answer.failure}")
                    else:
                        said.append(answer.status)
        return said, failures

    return run(work())


def rotate_all(
    contexts: Sequence[str], *, namespace: str | None, kubeconfig: Path | None, timeout: float
) -> None:
    """
    Have every node of the clusters change its key, one after the other.

    Args:
        timeout: seconds to wait for each new key.

    Raises:
        UserError: an agent does not run, and then nothing is changed; or a node does not get a new
            key in time, and those after it keep theirs.
    """

    async def work() -> None:
        async with opened(kubeconfig, contexts) as kubes:
            agents = [
                (kube, context, pod)
                for context, kube in kubes.items()
                for pod in await find_agents(kube, context, namespace)
            ]
            for _, context, pod in agents:
                if pod.obstacle:
                    raise UserError(
                        f"{context}: {pod.spec.node_name} has no running agent: {pod.obstacle}",
                        hint="no key was changed",
                    )
            for kube, _, pod in agents:
                print(await rotate_key(kube, pod, timeout))

    run(work())
