"""`clustermesh encryption … --context …`: the agents of whole clusters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from clustermesh.kube import Kube
from clustermesh.status import DaemonStatus

from .connect import opened
from .installation import find_apiserver
from .options import run
from .pods import Pod, ask_all, find_pods


def statuses_of(
    contexts: Sequence[str], *, namespace: str | None, kubeconfig: Path | None
) -> tuple[list[DaemonStatus], list[str]]:
    """What every agent of the clusters says, and why some say nothing."""

    async def work() -> tuple[list[DaemonStatus], list[str]]:
        said, failures = [], []
        async with opened(kubeconfig, contexts) as kubes:
            for context, kube in kubes.items():
                for answer in await ask_all(kube, await _agents(kube, context, namespace), "agent"):
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
                for pod in await _agents(kube, context, namespace):
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


async def _agents(kube: Kube, context: str, namespace: str | None) -> list[Pod]:
    deployment = await find_apiserver(kube, context, namespace)
    return await find_pods(kube, deployment.metadata.namespace, "agent")
