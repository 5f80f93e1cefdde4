"""`clustermesh connectivity test --context …`: every way from every node of whole clusters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from clustermesh.cli.connectivity import Ways, given_up
from clustermesh.errors import UserError
from clustermesh.kube import Kube, KubeError
from clustermesh.status import TABLE_REPLY

from .connect import opened
from .options import run
from .pods import AT_ONCE, Pod, find_agents, table_of

_POLL: Final = 2.0  # seconds: asking takes a process in each agent's container


def test_clusters(
    contexts: Sequence[str], *, namespace: str | None, kubeconfig: Path | None, timeout: float
) -> list[Ways]:
    """
    The ways from every node, once each has been looked at since this was called.

    Args:
        timeout: seconds to wait for that.
    """
    return run(_test(contexts, namespace, kubeconfig, timeout))


async def _test(
    contexts: Sequence[str], namespace: str | None, kubeconfig: Path | None, timeout: float
) -> list[Ways]:
    async with opened(kubeconfig, contexts) as kubes:
        found = await asyncio.gather(
            *(find_agents(kube, context, namespace) for context, kube in kubes.items())
        )
        turns = asyncio.Semaphore(AT_ONCE)
        until = time.monotonic() + timeout
        tests = [
            _wait(kubes[context], context, pod, turns, until)
            for context, pods in zip(kubes, found, strict=True)
            for pod in pods
        ]
        return await asyncio.gather(*tests)


async def _wait(kube: Kube, context: str, pod: Pod, turns: asyncio.Semaphore, until: float) -> Ways:
    began = time.monotonic()
    while True:
        async with turns:
            ways = await _ask(kube, f"{context}/{pod.spec.node_name}", pod)
        waited = time.monotonic() - began
        if ways.is_fresh(waited):
            return ways
        if time.monotonic() > until:
            return given_up(ways, waited)
        await asyncio.sleep(_POLL)


async def _ask(kube: Kube, source: str, pod: Pod) -> Ways:
    if pod.obstacle:
        return Ways(source, failure=pod.obstacle)
    try:
        reply = TABLE_REPLY.decode(await table_of(kube, pod, "agent", "paths"))
    except (KubeError, UserError, msgspec.DecodeError) as error:
        return Ways(source, failure=str(error))
    return Ways(source, reply.rows)
