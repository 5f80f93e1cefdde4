"""Service accounts of a cluster: their tokens, and what the API server answers to those."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from clustermesh.sandbox.kube.api import RefusedError

from .cluster import KubeCluster

_TIMEOUT: Final = 30.0  # seconds


class Rule(NamedTuple):
    """Something that RBAC lets an account do."""

    group: str
    resource: str
    verb: str
    name: str = "*"


class Account:
    """A service account, by a token that it would have in a pod."""

    def __init__(
        self, kube: KubeCluster, namespace: str, name: str, *, pod: Mapping[str, Any] | None = None
    ) -> None:
        """
        Args:
            pod: the metadata of the pod that has the token, which then names the pod's node.
        """
        self._kube = kube
        self._namespace = namespace
        spec: dict[str, Any] = {}
        if pod is not None:
            reference = {"name": pod["name"], "uid": pod["uid"]}
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", **reference}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        self.token: Final[str] = kube.call("POST", path, {"spec": spec})["status"]["token"]
        self._context = ssl.create_default_context(cafile=str(kube.ca))

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """
        What the API server answers to the account.

        Raises:
            RefusedError: it does not do it.
        """
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._kube.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, context=self._context, timeout=_TIMEOUT) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise RefusedError(error.code, json.load(error)["message"]) from None

    def rules(self, namespace: str) -> set[Rule]:
        """Everything that it may do in `namespace`, and to what is in none."""
        path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
        status = self.call("POST", path, {"spec": {"namespace": namespace}})["status"]
        assert not status["incomplete"]
        return {rule for part in status["resourceRules"] for rule in _rules(part)}

    def write_kubeconfig(self, path: Path) -> None:
        """Make a file with which the daemons log in as this account."""
        cluster = {"server": self._kube.url, "certificate-authority": str(self._kube.ca)}
        context = {"cluster": "it", "user": "it", "namespace": self._namespace}
        content = {
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "it", "user": {"token": self.token}}],
            "contexts": [{"name": "it", "context": context}],
            "current-context": "it",
        }
        path.write_text(yaml.safe_dump(content))


def _rules(part: Mapping[str, Any]) -> Iterator[Rule]:
    for group in part.get("apiGroups", ()):
        for resource in part.get("resources", ()):
            for verb in part["verbs"]:
                for name in part.get("resourceNames") or ("*",):
                    yield Rule(group, resource, verb, name)
