"""What kubelets and controllers say of pods, and of ours above all: whether they are ready."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from clustermesh.sandbox.daemons import Part, World
from clustermesh.sandbox.manifests import pod_object
from clustermesh.sandbox.model import Cluster, Control, Node

from .api import Api
from .objects import PODS
from .release import workload_path

DAEMONS: Final = ("etcd", "apiserver", "agent")
"""The programs that run in pods of ours. A container is called like its program."""

Status = Mapping[str, Any]

# What ended stays ended until `clustermesh sandbox start`.
_ENDED: Final = {"terminated": {"exitCode": 1, "reason": "Error", "message": "it was stopped"}}


class Reports:
    """The status of the pods of a cluster, and of what they belong to."""

    def __init__(self, world: World, cluster: Cluster) -> None:
        self._world = world
        self._cluster = cluster
        self._api = Api(world.plane(cluster))
        self._sent: dict[str, Status] = {}

    def send(self) -> None:
        """
        Look at all daemons, and tell the API server what has changed since the last time.

        Blocks for as long as they take to answer.

        Raises:
            OSError: the API server does not answer.
            RefusedError: it does not know such an object, or does not like what is said of it.
        """
        for path, status in self._daemons():
            if self._sent.get(path) != status:
                self._say(path, status)
                self._sent[path] = status
        for path, status in self._changed_pods():
            self._say(path, status)

    def _say(self, path: str, status: Status) -> None:
        self._api.call("PATCH", f"{path}/status", {"status": status})

    def _changed_pods(self) -> Iterator[tuple[str, Status]]:
        """
        The pods of the sandbox of which the API server believes what is not so any more.

        `World.pods_changed` tells it too, and at once: so what was said last is asked for.
        """
        listed = self._api.call("GET", PODS)["items"]
        believed = {item["metadata"]["name"]: _is_ready(item.get("status", {})) for item in listed}
        for node in self._cluster.nodes:
            for pod in node.pods:
                _, name = self._world.pod_of(pod)
                ready = self._world.is_running(pod)
                if believed.get(name, ready) != ready:
                    item = pod_object(pod, node, self._cluster.versions, ready=ready)
                    yield f"{PODS}/{name}", item["status"]

    def _daemons(self) -> Iterator[tuple[str, Status]]:
        ready: dict[str, bool] = {}
        places: tuple[Control | Node, ...] = (self._cluster.control, *self._cluster.nodes)
        for place in places:
            namespace, name = self._world.pod_of(place)
            found = self._pod(place)
            ready[place.place] = all(one["ready"] for one in found["containerStatuses"])
            yield f"/api/v1/namespaces/{namespace}/pods/{name}", found
        agents = sum(ready[node.place] for node in self._cluster.nodes)
        yield workload_path(Node), _daemon_set(len(self._cluster.nodes), agents)
        yield workload_path(Control), _deployment(int(ready[self._cluster.control.place]))

    def _pod(self, place: Control | Node) -> Status:
        parts = [
            part
            for part in self._world.parts()
            if part.place.place == place.place and part.program in DAEMONS
        ]
        containers = [_container(part) for part in parts]
        is_ready = all(container["ready"] for container in containers)
        ips = [str(ip) for ip in self._cluster.used(place.addresses)]
        return {
            "phase": "Running",
            "hostIP": ips[0],
            "podIP": ips[0],
            "podIPs": [{"ip": ip} for ip in ips],
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": str(is_ready)},
            ],
            "containerStatuses": containers,
        }


def _is_ready(status: Status) -> bool:
    conditions = status.get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _container(part: Part) -> Status:
    is_running = part.process is not None
    answers: Sequence[Any] = list(part.report().statuses()) if is_running else ()
    return {
        "name": part.program,
        "image": "clustermesh",
        "imageID": "",
        "ready": is_running and (part.program == "etcd" or any(one.ready for one in answers)),
        "restartCount": 0,
        "state": {"running": {}} if is_running else _ENDED,
    }


def _daemon_set(wanted: int, ready: int) -> Status:
    return {
        "desiredNumberScheduled": wanted,
        "currentNumberScheduled": wanted,
        "updatedNumberScheduled": wanted,
        "numberMisscheduled": 0,
        "numberReady": ready,
        "numberAvailable": ready,
    }


def _deployment(ready: int) -> Status:
    return {
        "replicas": 1,
        "updatedReplicas": 1,
        "readyReplicas": ready,
        "availableReplicas": ready,
    }
