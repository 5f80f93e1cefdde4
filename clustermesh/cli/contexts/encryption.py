"""`clustermesh encryption … --context …`: the agents of whole clusters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from clustermesh.status import DaemonStatus

from .connect import opened
from .options import run
from .pods import ask_all, find_agents


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

    Raises:
        UserError: one does not; those after it keep theirs.
    """

    async def work() -> None:
        async with opened(kubeconfig, contexts) as kubes:
            for context, kube in kubes.items():
                for pod in await find_agents(kube, context, namespace):
                    said = await asyncio.wait_for(
                        kube.run(
                            pod.metadata.namespace,
                            pod.metadata.name,
                            "agent",
                            *("clustermesh", "encryption", "rotate", f"--wait-timeout={timeout:g}"),
                        ),
                        timeout + 30,
                    )
                    print(said.decode().strip())

    run(work())
