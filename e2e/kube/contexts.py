"""`clustermesh` on the contexts of several clusters, and their daemons as processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from base64 import b64decode
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from urllib.request import urlopen

import yaml

from e2e.mesh import eventually

from .cluster import KubeCluster

NAMESPACE: Final = "kube-system"


class Said(NamedTuple):
    """What a command printed."""

    code: int
    out: str
    err: str


class Contexts:
    """Clusters, and the kubeconfig of one who may do everything in all of them."""

    def __init__(self, directory: Path, programs: Path, clusters: list[KubeCluster]) -> None:
        self.clusters: Final = {cluster.name: cluster for cluster in clusters}
        self.directory: Final = directory
        self._kubeconfig = directory / "kubeconfig"
        self._helm = programs / "helm4"
        configs = [yaml.safe_load(cluster.kubeconfig.read_text()) for cluster in clusters]
        kinds = ("clusters", "users", "contexts")
        merged = {kind: [entry for one in configs for entry in one[kind]] for kind in kinds}
        self._kubeconfig.write_text(yaml.safe_dump(merged))

    def run(self, *words: str, helm: str = "") -> Said:
        """`clustermesh WORDS…`."""
        ran = subprocess.run(
            [sys.executable, "-c", "from clustermesh.cli.main import main; main()", *words],
            env={
                **os.environ,
                "KUBECONFIG": str(self._kubeconfig),
                "CLUSTERMESH_HELM": helm or str(self._helm),
                "HOME": str(self._kubeconfig.parent),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return Said(ran.returncode, ran.stdout, ran.stderr)

    def install(self, name: str, number: int, *flags: str) -> Said:
        """Install into the context of that name."""
        return self.run(
            "install",
            f"--context={name}",
            f"--cluster-name={name}",
            f"--cluster-id={number}",
            *flags,
        )

    def connect(self, *flags: str, helm: str = "") -> Said:
        """Connect east with west."""
        both = ("--context=east", "--destination-context=west")
        return self.run("connect", *both, *flags, helm=helm)

    def disconnect(self) -> Said:
        """Disconnect east from west."""
        return self.run("disconnect", "--context=east", "--destination-context=west")

    def apiserver(self, name: str) -> Any:
        """The template of the apiserver's pods: they are replaced when it changes."""
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/clustermesh-apiserver"
        return self.clusters[name].call("GET", path)["spec"]["template"]

    def get(self, name: str, path: str) -> Any:
        """An object in the namespace of the installation; None without it."""
        whole = f"/api/v1/namespaces/{NAMESPACE}/{path}"
        cluster = self.clusters[name]
        return cluster.call("GET", whole) if cluster.exists(whole) else None

    def certificates(self, name: str, kind: str) -> Path:
        """A directory with what a pod has of the Secret of these certificates."""
        directory = self.directory / f"{name}-{kind}"
        directory.mkdir()
        secret = self.get(name, f"secrets/clustermesh-apiserver-{kind}-cert")
        for key, text in secret["data"].items():
            path = directory / key
            path.touch(mode=0o600)
            path.write_bytes(b64decode(text))
        return directory

    def version(self, name: str, path: str) -> str | None:
        """What changes whenever the object does."""
        found = self.get(name, path)
        return found and str(found["metadata"]["resourceVersion"])


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Daemons:
    """
    A cluster's etcd, apiserver and agent, with the certificates of its Secrets.

    They are processes, not pods: there is no node that would run them.
    """

    def __init__(
        self, contexts: Contexts, name: str, directory: Path, host: str = "127.0.0.1"
    ) -> None:
        """
        Args:
            host: the address that they listen on.
        """
        self._contexts = contexts
        self._name = name
        self._directory = directory
        self._host = host
        self.etcd_port, self._peer_port, self.apiserver_port, self.agent_port = free_ports(4)
        self.clusters: Final = directory / "clusters"
        self.clusters.mkdir()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        own, url = self._contexts.certificates(self._name, "server"), self._etcd_url
        self._start(
            "etcd",
            f"--data-dir={self._directory / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls=http://127.0.0.1:{self._peer_port}",
            "--client-cert-auth",
            f"--trusted-ca-file={own / 'ca.crt'}",
            f"--cert-file={own / 'tls.crt'}",
            f"--key-file={own / 'tls.key'}",
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def endpoint(self) -> str:
        """Where the etcd is, by a name that is in no certificate."""
        return f"localhost:{self.etcd_port}"

    def start_apiserver(self, number: int) -> None:
        """Start the apiserver, and wait until everything is in etcd."""
        admin = self._contexts.certificates(self._name, "admin")
        self._start_python(
            "apiserver.main",
            f"--cluster-name={self._name}",
            f"--cluster-id={number}",
            "--source=kube",
            f"--kubeconfig={self._contexts.clusters[self._name].kubeconfig}",
            f"--etcd-endpoints={self._etcd_url}",
            f"--etcd-ca={admin / 'ca.crt'}",
            f"--etcd-cert={admin / 'tls.crt'}",
            f"--etcd-key={admin / 'tls.key'}",
            f"--clusters-dir={self.clusters}",
            f"--listen={self._host}:{self.apiserver_port}",
        )
        self._await_ready(self.apiserver_port)

    def start_agent(self, number: int, node: str) -> None:
        """Start an agent that programs nothing, and wait until it has read its own cluster."""
        local = self._contexts.certificates(self._name, "local")
        config = {
            "endpoints": [self._etcd_url],
            "trusted-ca-file": str(local / "ca.crt"),
            "cert-file": str(local / "tls.crt"),
            "key-file": str(local / "tls.key"),
        }
        file = self._directory / "local-etcd.yaml"
        file.write_text(yaml.safe_dump(config))
        self._start_python(
            "agent.main",
            f"--cluster-name={self._name}",
            f"--cluster-id={number}",
            f"--node-name={node}",
            f"--local-etcd-config={file}",
            f"--clusters-dir={self.clusters}",
            f"--state-dir={self._directory / 'state'}",
            "--datapath=none",
            f"--listen={self._host}:{self.agent_port}",
        )
        self._await_ready(self.agent_port)

    @property
    def _etcd_url(self) -> str:
        return f"https://127.0.0.1:{self.etcd_port}"

    def _start_python(self, module: str, *flags: str) -> None:
        self._start(sys.executable, "-c", f"from {module} import main; main()", *flags)

    def _start(self, *command: str) -> None:
        log = self._stack.enter_context((self._directory / "daemons.log").open("ab"))
        process = subprocess.Popen(command, stdout=log, stderr=log)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)

    def _await_ready(self, port: int) -> None:
        eventually(f"port {port} is ready", lambda: _is_ready(f"http://{self._host}:{port}/readyz"))


def _is_ready(url: str) -> bool:
    with suppress(OSError), urlopen(url, timeout=1) as answer:
        return bool(answer.status == 200)
    return False
