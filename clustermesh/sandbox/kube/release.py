"""
The chart in a cluster of the sandbox, as helm installs it, and what its pods are then made of.

What is to run is decided by the objects that the chart made: their command lines, settings and
certificates are what the daemons of the sandbox are started with. Nothing is asked when a daemon is
started; what was read last is below the directory, as a kubelet remembers its pods.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import yaml

from certs.store import write_atomically
from clustermesh.cli.contexts.helm import find_chart
from clustermesh.errors import UserError
from clustermesh.sandbox.model import Cluster, Control, Node, Sandbox
from clustermesh.sandbox.remains import cgroup_mount

from .api import Api, RefusedError
from .containers import Containers
from .control_plane import ControlPlane

NAMESPACE: Final = "clustermesh"
ACCOUNT: Final = "clustermesh-apiserver"

_AGENT: Final = "clustermesh-agent"
_TOKEN_SECONDS: Final = 365 * 86400
_CORE: Final = f"/api/v1/namespaces/{NAMESPACE}"
_APPS: Final = f"/apis/apps/v1/namespaces/{NAMESPACE}"
_SERVICE: Final = f"{_CORE}/services/{ACCOUNT}"
_WORKLOADS: Final[Mapping[type[Control | Node], str]] = {
    Control: f"deployments/{ACCOUNT}",
    Node: f"daemonsets/{_AGENT}",
}
_NOT_FOUND: Final = 404


class Release:
    """The chart in one cluster. All of it is called inside the cluster's control plane."""

    def __init__(self, sandbox: Sandbox, cluster: Cluster, plane: ControlPlane) -> None:
        self._sandbox = sandbox
        self._cluster = cluster
        self._plane = plane

    def install(self, authority: Path) -> None:
        """
        Install the chart, and be the load balancer that its Service waits for.

        Args:
            authority: directory of the CA that all clusters share.

        Raises:
            UserError: helm; with its reason.
        """
        addresses = [str(ip) for ip in self._cluster.control.addresses]
        ca = {
            part: base64.b64encode((authority / f"ca.{suffix}").read_bytes()).decode()
            for part, suffix in (("cert", "crt"), ("key", "key"))
        }
        values = {
            "cluster": {"name": self._cluster.name, "id": self._cluster.id},
            "agent": {
                "routing": self._sandbox.routing,
                "extraArgs": [f"--{one}" for one in self._sandbox.settings(self._cluster)],
            },
            "encryption": {"enabled": self._sandbox.encryption != "none"},
            "tls": {"ca": ca},
            "clustermesh": {
                "apiserver": {
                    "kvstoremesh": {"enabled": self._sandbox.mirror},
                    "service": {"type": "LoadBalancer"},
                    "tls": {"server": {"extraIpAddresses": [*addresses, "127.0.0.1"]}},
                }
            },
        }
        api = Api(self._plane)
        where = ("--namespace", NAMESPACE, "--create-namespace", "--values", "-")
        text = yaml.safe_dump(values)
        try:
            api.run("helm4", "install", "clustermesh", find_chart(), *where, stdin=text)
        except RuntimeError as error:
            raise UserError(f"{self._cluster.name}: {error}") from None
        found = {"loadBalancer": {"ingress": [{"ip": addresses[0]}]}}
        api.call("PATCH", f"{_SERVICE}/status", {"status": found})
        for node in self._cluster.nodes:
            self._give_token(api, node)
        self._make_pod(api, self._cluster.control)

    def sync(self) -> None:
        """Read what the pods are made of, and have their files so. OSError: nobody answers."""
        api = Api(self._plane)

        @cache
        def get(kind: str, name: str) -> Any:
            return _get(api, kind, name)

        for kind in _WORKLOADS:
            found = api.call("GET", workload_path(kind))
            text = json.dumps(found["spec"]["template"]["spec"]).encode()
            write_atomically({self._remembered(kind): (text, 0o644)})
            observed = {"observedGeneration": found["metadata"]["generation"]}
            api.call("PATCH", f"{workload_path(kind)}/status", {"status": observed})
        places: tuple[Control | Node, ...] = (self._cluster.control, *self._cluster.nodes)
        for place in places:
            self._containers(place).write_volumes(get)

    def command(self, place: Control | Node, container: str) -> Sequence[str]:
        """The command line of a container of the pod at a place."""
        logins = {"apiserver": self._plane.account, "agent": self._login(place)}
        more = [f"--kubeconfig={logins[container]}"] if container in logins else []
        if isinstance(place, Node):
            more.append(f"--encryption-sockets={self._sandbox.sockets(place)}")
        return self._containers(place).command(container, *more, **_fields(place))

    def environment(self, place: Control | Node, container: str) -> Mapping[str, str]:
        """The variables of a container of the pod at a place."""
        return self._containers(place).environment(container, **_fields(place))

    def clusters_dir(self, node: Node) -> Path:
        """Where the pod on a node has the files of the connected clusters."""
        return self._volumes(node) / "etc/clustermesh/clusters"

    def _make_pod(self, api: Api, place: Control | Node) -> Any:
        """
        Be the controller and the scheduler of a workload, and return what the pod is called.

        It is in the network of its place, whatever the chart says: a control plane is on no node,
        and its pod is said to be on the first one.
        """
        owner = api.call("GET", workload_path(type(place)))
        template = owner["spec"]["template"]
        node = place if isinstance(place, Node) else self._cluster.nodes[0]
        reference = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "controller": True,
        }
        pod = {
            "metadata": {
                "name": pod_name(place),
                "labels": template["metadata"]["labels"],
                "ownerReferences": [reference],
            },
            "spec": {**template["spec"], "nodeName": node.name, "hostNetwork": True},
        }
        return api.call("POST", f"{_CORE}/pods", pod)["metadata"]

    def _give_token(self, api: Api, node: Node) -> None:
        """Make the agent's pod on a node: its token says which node that is, and what it may."""
        made = self._make_pod(api, node)
        bound = {"apiVersion": "v1", "kind": "Pod", "name": made["name"], "uid": made["uid"]}
        spec = {"boundObjectRef": bound, "expirationSeconds": _TOKEN_SECONDS}
        given = api.call("POST", f"{_CORE}/serviceaccounts/{_AGENT}/token", {"spec": spec})
        self._plane.write_token(self._login(node), given["status"]["token"], NAMESPACE)

    def _login(self, place: Control | Node) -> Path:
        return self._sandbox.home(place) / "kubeconfig"

    def _containers(self, place: Control | Node) -> Containers:
        spec = json.loads(self._remembered(type(place)).read_text())
        names = {f"{ACCOUNT}.{NAMESPACE}.svc": str(self._cluster.control.addresses.v4)}
        if isinstance(place, Node):
            names |= {
                "/sys/fs/bpf": str(self._sandbox.bpffs(place)),
                "/host/sys/fs/cgroup": str(cgroup_mount() / self._sandbox.cgroup_of(place)),
                "/host/proc/sys/net": "/proc/sys/net",
                "/var/lib/clustermesh": str(self._sandbox.state(place)),
            }
        return Containers(spec, self._volumes(place), names)

    def _volumes(self, place: Control | Node) -> Path:
        return self._sandbox.home(place) / "volumes"

    def _remembered(self, kind: type[Control | Node]) -> Path:
        return self._plane.directory / f"{_WORKLOADS[kind].partition('/')[0]}.json"


def pod_name(place: Control | Node) -> str:
    """What the pod of a place is called, in the namespace of the release."""
    if isinstance(place, Node):
        return f"{_AGENT}-{place.name}"
    return f"{ACCOUNT}-control"


def workload_path(kind: type[Control | Node]) -> str:
    """Where the API server has what the pods of a kind of place belong to."""
    return f"{_APPS}/{_WORKLOADS[kind]}"


def _fields(place: Control | Node) -> dict[str, str]:
    """What a kubelet tells the containers of a pod, whose uid no other pod ever has."""
    address: IPv4Address = place.addresses.v4
    return {
        "podIP": str(address),
        "hostIP": str(address),
        "nodeName": place.name if isinstance(place, Node) else "control",
        "uid": uuid4().hex,
    }


def _get(api: Api, kind: str, name: str) -> Any:
    try:
        return api.call("GET", f"{_CORE}/{kind}s/{name}")
    except RefusedError as error:
        if error.code != _NOT_FOUND:
            raise
        return None
