"""
A cluster of the sandbox on a real API server: what its kubelets, and its user, write there.

Nobody schedules: the pods are where they are, and Nodes and Pods say so. All the rest is Kubernetes
itself: it gives ClusterIPs, and its controller makes EndpointSlices of what the pods' status says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from clustermesh.errors import UserError
from clustermesh.sandbox.manifests import NAMESPACE, Manifest, node_object, pod_object
from clustermesh.sandbox.model import Cluster, Pod
from clustermesh.sandbox.namespace import run_inside

from .api import Api
from .control_plane import ControlPlane

T = TypeVar("T")

_DEADLINE: Final = 60.0  # seconds until an API server answers, when others start too
_POLL: Final = 0.05  # seconds
WEB_SOCKETS: Final = "ExtendWebSocketsToKubelet"
"""What a Node declares whose kubelet takes every client's WebSocket as it is: see endpoint.py."""

_NODES: Final = "/api/v1/nodes"
PODS: Final = f"/api/v1/namespaces/{NAMESPACE}/pods"
_ACCOUNT: Final = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"


class Objects:
    """The objects of one cluster, in its API server. See Kubernetes in `manifests`."""

    def __init__(self, plane: ControlPlane, cluster: Cluster, namespace: Path) -> None:
        """
        Args:
            namespace: the network that the API server is in.
        """
        self._api = Api(plane)
        self._cluster = cluster
        self._namespace = namespace

    def create(self, is_running: Callable[[Pod], bool]) -> None:
        """See Kubernetes. The controllers have to run."""
        self._inside(lambda: self._create(is_running))

    def apply(self, file: Path, is_running: Callable[[Pod], bool]) -> list[str]:
        """See Kubernetes. What was right in a file with a mistake stays, as with kubectl."""
        del is_running
        return self._kubectl("apply", file)

    def delete(self, file: Path, is_running: Callable[[Pod], bool]) -> list[str]:
        """See Kubernetes."""
        del is_running
        return self._kubectl("delete", file, "--ignore-not-found")

    def update(self, is_running: Callable[[Pod], bool]) -> None:
        """See Kubernetes."""
        self._inside(lambda: self._update(is_running))

    def wait_until_ready(self) -> None:
        """
        Wait until the API server answers.

        Raises:
            UserError: it does not.
        """
        self._wait("its API server does not answer", self._api.is_ready)

    def _create(self, is_running: Callable[[Pod], bool]) -> None:
        for node in self._cluster.nodes:
            item = node_object(node, self._cluster.versions)
            item["status"]["declaredFeatures"] = [WEB_SOCKETS]
            self._put(_NODES, item)
        # An account is that controller's work, and no Pod can be without one.
        self._wait("its controllers do not work", lambda: self._api.exists(_ACCOUNT))
        for pod in self._pods(is_running):
            self._put(PODS, pod)

    def _update(self, is_running: Callable[[Pod], bool]) -> None:
        for pod in self._pods(is_running):
            path = f"{PODS}/{pod['metadata']['name']}/status"
            self._api.call("PATCH", path, {"status": pod["status"]})

    def _pods(self, is_running: Callable[[Pod], bool]) -> list[Manifest]:
        return [
            pod_object(pod, node, self._cluster.versions, ready=is_running(pod))
            for node in self._cluster.nodes
            for pod in node.pods
        ]

    def _put(self, path: str, item: Manifest) -> None:
        """Create an object, and say what has become of it: the first alone would not be heard."""
        self._api.call("POST", path, item)
        status = {"status": item["status"]}
        self._api.call("PATCH", f"{path}/{item['metadata']['name']}/status", status)

    def _kubectl(self, verb: str, file: Path, *flags: str) -> list[str]:
        try:
            text = file.read_text()
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from error
        words = (verb, "--filename", "-", "--output", "name", *flags)
        try:
            said = self._inside(lambda: self._api.run("kubectl", *words, stdin=text))
        except RuntimeError as error:
            raise UserError(f"{self._cluster.name}: {' '.join(str(error).split())}") from None
        return said.split()

    def _wait(self, otherwise: str, look: Callable[[], Any]) -> None:
        deadline = time.monotonic() + _DEADLINE
        while not self._inside(look):
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self._cluster.name}: {otherwise}",
                    hint=f"clustermesh sandbox logs {self._cluster.name}",
                )
            time.sleep(_POLL)

    def _inside(self, do: Callable[[], T]) -> T:
        return run_inside(self._namespace, do)
