"""
`clustermesh certs secrets`: a cluster's certificates, kept in Secrets rather than in a directory.

They are laid out in a directory for a moment, `certs init` does what there is to do, and what is
different afterwards is written back. The CA goes first: whoever finds it goes on from there.
"""

from __future__ import annotations

import asyncio
import base64
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from cyclopts import Parameter

import certs
from clustermesh.errors import UserError
from clustermesh.kube import Kube, KubeConfig, KubeError, NotFoundError, Resource, read_kubeconfig
from clustermesh.kube import in_cluster as kube_in_cluster
from clustermesh.model import ClusterName, parse_cluster_name

Files: TypeAlias = Mapping[str, bytes]
"""The content of a Secret, by key."""

_SECRETS: Final = Resource("v1", "secrets")

# STABLE API: the chart mounts them, and another version of us finds them again.
_CA: Final = "clustermesh-ca"
_CA_KEYS: Final = ("ca.crt", "ca.key")


class _Secret(msgspec.Struct, frozen=True):
    data: Mapping[str, str] = {}


def secrets(
    *,
    cluster_name: str,
    namespace: str = certs.NAMESPACE,
    auth_mode: Literal["cluster", "legacy"] = "cluster",
    server_name: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    lifetime: timedelta = certs.LEAF_LIFETIME,
    kubeconfig: Path | None = None,
    context: str | None = None,
) -> None:
    """
    Keep a cluster's certificates in Secrets: make what is missing, renew what is due.

    Parameters
    ----------
    cluster_name
        The cluster that they are for.
    namespace
        Where its apiserver runs, and the Secrets are.
    auth_mode
        As whom its agents log in to other clusters: as remote-CLUSTER, or as remote.
    server_name
        A DNS name or address that peers dial. Repeatable.
    lifetime
        How long certificates are good for: 365d, 12h.
    kubeconfig
        How to reach the API server; in a pod of the cluster it is known.
    context
        Which context of the kubeconfig; by default the current.
    """
    cluster = parse_cluster_name(cluster_name)
    config = _config(kubeconfig, context)
    try:
        written = asyncio.run(
            keep_secrets(
                config, cluster, namespace, auth_mode == "legacy", server_name, lifetime=lifetime
            )
        )
    except certs.CertificateError as error:
        raise UserError(str(error), hint=error.hint) from error
    except KubeError as error:
        raise UserError(str(error)) from error
    for name in written:
        print(f"Secret {namespace}/{name}: written")
    if not written:
        print(f"namespace {namespace}: nothing is due")


async def keep_secrets(
    config: KubeConfig,
    cluster: ClusterName,
    namespace: str,
    legacy: bool,
    server_names: Iterable[str],
    *,
    lifetime: timedelta,
) -> list[str]:
    """
    Bring the Secrets up to date, and return those that were written.

    Raises:
        CertificateError: what is in them is none, or of another cluster.
        KubeError: the API server; call it again.
    """
    remote = "remote" if legacy else f"remote-{cluster}"
    profiles = {"server": "server", "admin": "admin", "local": "local", "remote": remote}
    written = []
    with tempfile.TemporaryDirectory() as directory:
        store = certs.Store(Path(directory))
        async with Kube(config) as kube:
            found = {_CA: await _read(kube, namespace, _CA)}
            _lay_out(store, "ca", found[_CA].get("ca.crt"), found[_CA].get("ca.key"))
            for kind, profile in profiles.items():
                files = found[secret_of(kind)] = await _read(kube, namespace, secret_of(kind))
                _lay_out(store, profile, files.get("tls.crt"), files.get("tls.key"))
            certs.init(
                store.directory,
                cluster,
                now=datetime.now(UTC),
                namespace=namespace,
                server_names=server_names,
                remotes=() if legacy else (cluster,),
                lifetime=lifetime,
            )
            wanted = {_CA: {key: (store.directory / key).read_bytes() for key in _CA_KEYS}}
            for kind, profile in profiles.items():
                wanted[secret_of(kind)] = {
                    "ca.crt": store.path("ca", "crt").read_bytes(),
                    "tls.crt": store.path(profile, "crt").read_bytes(),
                    "tls.key": store.path(profile, "key").read_bytes(),
                }
            for name, files in wanted.items():
                if found[name] != files:
                    await _write(kube, namespace, name, files, is_new=not found[name])
                    written.append(name)
    return written


def secret_of(kind: str) -> str:
    """The Secret of a kind of certificate: server, admin, local or remote."""
    return f"clustermesh-apiserver-{kind}-cert"


def _config(kubeconfig: Path | None, context: str | None) -> KubeConfig:
    if kubeconfig is None and context is None:
        return kube_in_cluster()
    return read_kubeconfig((kubeconfig,) if kubeconfig else (), context)


def _lay_out(store: certs.Store, name: str, certificate: bytes | None, key: bytes | None) -> None:
    for suffix, content in (("crt", certificate), ("key", key)):
        if content:
            path = store.path(name, suffix)
            path.touch(mode=0o600)
            path.write_bytes(content)


async def _read(kube: Kube, namespace: str, name: str) -> Files:
    """What a Secret holds; nothing when there is none."""
    try:
        secret = await kube.get(_SECRETS, name, _Secret, namespace=namespace)
    except NotFoundError:
        return {}
    return {key: base64.b64decode(text) for key, text in secret.data.items()}


async def _write(kube: Kube, namespace: str, name: str, files: Files, *, is_new: bool) -> None:
    data = {key: base64.b64encode(content).decode() for key, content in files.items()}
    if not is_new:
        await kube.patch(_SECRETS, name, {"data": data}, namespace=namespace)
        return
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque" if name == _CA else "kubernetes.io/tls",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "clustermesh"}},
        "data": data,
    }
    await kube.create(_SECRETS, secret, namespace=namespace)
