"""`clustermesh encryption … --context …`: the agents of whole clusters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clustermesh.errors import UserError
from clustermesh.kube import Kube
from clustermesh.status import DaemonStatus

from .connect import opened
from .options import run
from .pods import Answer, Pod, ask_all, find_agents, rotate_key


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
        UserError: an agent does not answer, or does not encrypt, and then nothing is changed; or a
            node does not get a new key in time, and those after it keep theirs.
    """

    async def work() -> None:
        async with opened(kubeconfig, contexts) as kubes:
            found: list[tuple[Kube, Pod]] = []
            for context, kube in kubes.items():
                agents = await find_agents(kube, context, namespace)
                for answer in await ask_all(kube, agents, "agent"):
                    if obstacle := _obstacle(answer):
                        text = f"{context}: {answer.pod.spec.node_name} {obstacle}"
                        raise UserError(text, hint="no key was changed")
                found += ((kube, pod) for pod in agents)
            for kube, pod in found:
                print(await rotate_key(kube, pod, timeout))

    run(work())


def _obstacle(answer: Answer) -> str:
    """Why a node cannot change its key; empty if it can."""
    if answer.status is None:
        return f"does not answer: {answer.failure}"
    return "" if answer.status.encryption else "does not encrypt"
