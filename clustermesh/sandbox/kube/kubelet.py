"""
Keeps the files of a cluster's pods as the API server has them, as kubelets do with their volumes.

    python -m clustermesh.sandbox.kube.kubelet SANDBOX CLUSTER
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Final

from clustermesh.sandbox.daemons import load

from .api import RefusedError
from .release import NAMESPACE

_RETRY_AFTER: Final = 1.0  # seconds


def main() -> None:
    """
    Follow the Secrets until killed. While nobody answers, all stays as it is.

    That is enough for what helm changes, too: it remembers each upgrade in a Secret.
    """
    world = load(sys.argv[1])
    cluster = world.sandbox.cluster(sys.argv[2])
    watch = ("kubectl", "get", "secrets", "--namespace", NAMESPACE, "--output", "name", "--watch")
    while True:
        with subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *watch],  # it ends with us
            env={**os.environ, **world.kubectl_environment(cluster)},
            stdout=subprocess.PIPE,
            text=True,
        ) as watching:
            assert watching.stdout is not None
            for _ in watching.stdout:
                try:
                    world.sync(cluster)
                except (OSError, RefusedError) as error:
                    print(f"error: {error}", flush=True)
        time.sleep(_RETRY_AFTER)


if __name__ == "__main__":
    main()
