"""
`python -m e2e.kube.glance DIRECTORY`: what `clustermesh status --context` says of a real cluster.

Run in a network namespace whose loopback device has the address 198.51.100.1, which stands for a
node and the pods on it. Prints the status without a peer, with one that is away, and as a table.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import yaml

from clustermesh.sandbox.kube.programs import kube_assets
from e2e.mesh import eventually

from .cluster import KubeCluster
from .contexts import NAMESPACE, Contexts, Daemons

_HOST: Final = "198.51.100.1"
_PODS: Final = f"/api/v1/namespaces/{NAMESPACE}/pods"


def main(directory: Path) -> None:
    """Bring up a cluster with its daemons, and look at it."""
    with KubeCluster(directory / "east", "east") as east:
        contexts = Contexts(directory, kube_assets(), [east])
        said = contexts.install("east", 1, "--set=agent.metrics.enabled=true")
        assert said.code == 0, said.err
        node = {"metadata": {"name": "node1"}, "spec": {"podCIDR": "10.1.0.0/24"}}
        east.call("POST", "/api/v1/nodes", node)
        address = {"type": "InternalIP", "address": _HOST}
        east.call("PATCH", "/api/v1/nodes/node1/status", {"status": {"addresses": [address]}})
        daemon_set = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/clustermesh-agent/status"
        counts = {"desiredNumberScheduled": 1, "currentNumberScheduled": 1, "numberMisscheduled": 0}
        east.call("PATCH", daemon_set, {"status": {**counts, "numberReady": 1}})
        with Daemons(contexts, "east", directory, _HOST) as daemons:
            daemons.start_apiserver(1)
            daemons.start_agent(1, "node1")
            put_pod(east, "apiserver", daemons.apiserver_port)
            put_pod(east, "agent", daemons.agent_port)
            said = contexts.run("status", "--context=east", "-o=json", "--wait")
            assert said.code == 0, said.out + said.err
            print(said.out, end="---\n")

            west = {"endpoints": ["http://127.0.0.1:1"]}
            (daemons.clusters / "west").write_text(yaml.safe_dump(west))
            looks = ["status", "--context=east", "-o=json"]
            eventually("it has failed", lambda: "refused" in contexts.run(*looks).out)
            said = contexts.run(*looks)
            assert said.code == 1
            print(said.out, end="---\n")
            print(contexts.run("status", "--context=east").out, end="")


def put_pod(cluster: KubeCluster, component: str, port: int) -> None:
    """Have a pod of a component be there, as if the process were it."""
    container = {"name": component, "image": "it", "args": [f"--listen=[$(POD_IP)]:{port}"]}
    labels = {"app.kubernetes.io/name": "clustermesh", "app.kubernetes.io/component": component}
    cluster.call(
        "POST",
        _PODS,
        {
            "metadata": {"name": component, "labels": labels},
            "spec": {"nodeName": "node1", "containers": [container]},
        },
    )
    status = {
        "phase": "Running",
        "podIP": _HOST,
        "podIPs": [{"ip": _HOST}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    cluster.call("PATCH", f"{_PODS}/{component}/status", {"status": status})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
