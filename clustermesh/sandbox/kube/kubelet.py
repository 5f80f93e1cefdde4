"""
Stands in for the kubelets of a cluster: one process, which listens on all of its nodes.

    python -m clustermesh.sandbox.kube.kubelet SANDBOX CLUSTER

Pods are started by somebody else. This keeps their files as the API server has them, says there how
they are, and runs commands in them for whoever asks the API server to.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

from clustermesh.sandbox.daemons import World, load
from clustermesh.sandbox.model import Cluster

from .api import RefusedError
from .endpoint import serve
from .release import NAMESPACE
from .reports import Reports

_RETRY_AFTER: Final = 1.0  # seconds
_LOOK_EVERY: Final = 1.0  # seconds between two looks at the daemons


def main() -> None:
    """Be the kubelets until killed. While the API server does not answer, all stays as it is."""
    world = load(sys.argv[1])
    asyncio.run(_run(world, world.sandbox.cluster(sys.argv[2])))


async def _run(world: World, cluster: Cluster) -> None:
    async with serve(world, cluster), asyncio.TaskGroup() as tasks:
        tasks.create_task(_keep_volumes(world, cluster), name="keep volumes")
        tasks.create_task(_report(world, cluster), name="report")


async def _keep_volumes(world: World, cluster: Cluster) -> None:
    """
    Follow the Secrets.

    That is enough for what helm changes, too: it remembers each upgrade in a Secret.
    """
    watch = ("kubectl", "get", "secrets", "--namespace", NAMESPACE, "--output", "name", "--watch")
    while True:
        watching = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", *watch),  # it ends with us
            env={**os.environ, **world.kubectl_environment(cluster)},
            stdout=asyncio.subprocess.PIPE,
        )
        assert watching.stdout is not None
        async for _ in watching.stdout:
            try:
                await asyncio.to_thread(world.sync, cluster)
            except (OSError, RefusedError) as error:
                print(f"error: {error}", flush=True)
        await watching.wait()
        await asyncio.sleep(_RETRY_AFTER)


async def _report(world: World, cluster: Cluster) -> None:
    reports = Reports(world, cluster)
    said = ""
    while True:
        try:
            await asyncio.to_thread(reports.send)
        except (OSError, RefusedError) as error:
            if str(error) != said:
                said = str(error)
                print(f"error: {said}", flush=True)
        else:
            said = ""
        await asyncio.sleep(_LOOK_EVERY)


if __name__ == "__main__":
    main()
