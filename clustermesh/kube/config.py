"""How to reach an API server: from within a pod, or as a kubeconfig file says."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import yaml

from clustermesh.errors import UserError

from .credentials import Credentials, Exec, Given, Material, read

# STABLE API: what the kubelet puts into every container.
_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KubeConfig:
    """An API server, and who we are there."""

    where: str  # where this was read, for messages
    server: str  # its URL
    namespace: str  # where our own objects are
    credentials: Credentials
    ca: Material | None = None  # None: what the system trusts
    server_name: str | None = None  # in its certificate, when it is not the host of the URL
    verify: bool = True
    proxy: str | None = None


class _Cluster(msgspec.Struct, frozen=True):
    server: str
    ca_file: str = msgspec.field(name="certificate-authority", default="")
    ca_data: str = msgspec.field(name="certificate-authority-data", default="")
    server_name: str = msgspec.field(name="tls-server-name", default="")
    insecure: bool = msgspec.field(name="insecure-skip-tls-verify", default=False)
    proxy: str = msgspec.field(name="proxy-url", default="")


class _Variable(msgspec.Struct, frozen=True):
    name: str
    value: str


class _Exec(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    command: str
    args: tuple[str, ...] | None = None
    env: tuple[_Variable, ...] | None = None
    provide_cluster_info: bool = False
    interactive_mode: str = "IfAvailable"


class _User(msgspec.Struct, frozen=True):
    token: str = ""
    token_file: str = msgspec.field(name="tokenFile", default="")
    certificate_file: str = msgspec.field(name="client-certificate", default="")
    certificate_data: str = msgspec.field(name="client-certificate-data", default="")
    key_file: str = msgspec.field(name="client-key", default="")
    key_data: str = msgspec.field(name="client-key-data", default="")
    exec: _Exec | None = None
    # What we do not do. To pass over it would be to log in as somebody else.
    username: str = ""
    impersonate: str = msgspec.field(name="as", default="")
    auth_provider: Mapping[str, Any] | None = msgspec.field(name="auth-provider", default=None)


class _Context(msgspec.Struct, frozen=True):
    cluster: str
    user: str = ""
    namespace: str = "default"


def in_cluster(directory: Path = _SERVICE_ACCOUNT) -> KubeConfig:
    """
    The API server of the cluster that we are a pod of.

    Raises:
        UserError: we are in no pod, or it has no service account.
    """
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise UserError("this is no pod of a cluster", hint="say --kubeconfig FILE")
    try:
        namespace = (directory / "namespace").read_text().strip()
    except OSError as error:
        raise UserError(
            f"the pod has no service account: {directory}: {error.strerror}",
            hint="set automountServiceAccountToken: true",
        ) from None
    return KubeConfig(
        where=f"the service account in {directory}",
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        namespace=namespace,
        credentials=Given(token=directory / "token"),
        ca=directory / "ca.crt",
    )


def read_kubeconfig(paths: Sequence[Path] = (), context: str | None = None) -> KubeConfig:
    """
    Read kubeconfig files; of two entries with one name, the first counts.

    Args:
        paths: none means those that kubectl reads: $KUBECONFIG, or ~/.kube/config.
        context: None means the current one.

    Raises:
        UserError: it names the file, and what is missing or wrong there.
    """
    return _Files(paths or _usual_paths()).config(context)


def _usual_paths() -> Sequence[Path]:
    named = [Path(text) for text in os.environ.get("KUBECONFIG", "").split(os.pathsep) if text]
    found = [path for path in named if path.exists()]
    return found or named[:1] or [Path.home() / ".kube" / "config"]


class _Files:
    """Kubeconfig files, of which the first counts."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [(path, _read(path)) for path in paths]
        self._names = ", ".join(map(str, paths))

    def config(self, name: str | None) -> KubeConfig:
        if name is None:
            texts = (content.get("current-context") for _, content in self._files)
            name = next((text for text in texts if text), None)
        if not name:
            raise UserError(f"{self._names}: no context is current", hint="name one")
        _, context = self._entry("context", name, _Context)
        place, cluster = self._entry("cluster", context.cluster, _Cluster)
        if not cluster.server.startswith(("https://", "http://")):
            raise UserError(f"{place}: {cluster.server!r} is no URL of an API server")
        ca = _material(place, "certificate-authority", cluster.ca_file, cluster.ca_data)
        credentials: Credentials = Given()
        if context.user:
            home, user = self._entry("user", context.user, _User)
            credentials = _credentials(home, context.user, user, cluster, ca)
        return KubeConfig(
            where=f"context {name} of {self._names}",
            server=cluster.server.rstrip("/"),
            namespace=context.namespace or "default",
            credentials=credentials,
            ca=ca,
            server_name=cluster.server_name or None,
            verify=not cluster.insecure,
            proxy=cluster.proxy or None,
        )

    def _entry(self, kind: str, name: str, type_: type[T]) -> tuple[Path, T]:
        """The first entry of that name, and the file that it is in: its paths start there."""
        known = []
        for path, content in self._files:
            for entry in content.get(f"{kind}s") or ():
                if not isinstance(entry, dict):
                    raise UserError(f"{path}: {kind}s is no list of entries with names")
                if entry.get("name") == name:
                    try:
                        return path, msgspec.convert(entry.get(kind) or {}, type_)
                    except msgspec.ValidationError as error:
                        raise UserError(f"{path}: {kind} {name}: {error}") from None
                known.append(str(entry.get("name")))
        there = f"there is {', '.join(sorted(known))}" if known else f"there are no {kind}s"
        raise UserError(f"{self._names}: no {kind} {name!r}", hint=there)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no kubeconfig")
    return content


def _credentials(
    path: Path, name: str, user: _User, cluster: _Cluster, ca: Material | None
) -> Credentials:
    refused = {
        "username": user.username,
        "as": user.impersonate,
        "auth-provider": user.auth_provider,
    }
    for field, value in refused.items():
        if value:
            raise UserError(
                f"{path}: user {name}: {field} is not supported",
                hint="use a token, a client certificate or exec",
            )
    if user.exec:
        return _exec(path, name, user.exec, cluster, ca)
    return Given(
        token=path.parent / user.token_file if user.token_file else user.token.encode() or None,
        certificate=_material(
            path, "client-certificate", user.certificate_file, user.certificate_data
        ),
        key=_material(path, "client-key", user.key_file, user.key_data),
    )


def _exec(path: Path, name: str, spec: _Exec, cluster: _Cluster, ca: Material | None) -> Exec:
    if spec.interactive_mode == "Always":
        raise UserError(f"{path}: user {name}: {spec.command} wants to ask a person")
    told: dict[str, Any] = {"interactive": False}
    if spec.provide_cluster_info:
        told["cluster"] = {
            "server": cluster.server,
            "tls-server-name": cluster.server_name,
            "insecure-skip-tls-verify": cluster.insecure,
            "certificate-authority-data": base64.b64encode(read(ca) or b"").decode(),
        }
    info = {"apiVersion": spec.api_version, "kind": "ExecCredential", "spec": told}
    # A relative path with a slash starts at the file, a bare name is looked up in $PATH.
    command = str(path.parent / spec.command) if "/" in spec.command else spec.command
    return Exec(
        command,
        spec.args or (),
        {variable.name: variable.value for variable in spec.env or ()},
        msgspec.json.encode(info).decode(),
    )


def _material(path: Path, field: str, file: str, data: str) -> Material | None:
    """What is in the file counts less than what is written out, as for kubectl."""
    if not data:
        return path.parent / file if file else None
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        raise UserError(f"{path}: {field}-data is no base64") from None
