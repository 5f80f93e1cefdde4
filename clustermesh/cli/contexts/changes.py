"""Do what a plan says. Each change is one that can be made again."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from clustermesh.errors import UserError
from clustermesh.kube import ConflictError, Kube, Resource

from .helm import Helm, chart_version
from .objects import (
    BUNDLE,
    BUNDLE_READ,
    CLUSTERS,
    CONFIG_MAPS,
    MANAGED_BY,
    OURS,
    SECRETS,
    read_data,
)
from .plan import Change, Connect, Trust, bundle_hash, bundle_pem
from .rows import ClusterRow


async def make(
    change: Change, cluster: ClusterRow, kube: Kube, helm: Helm, chart: str | None
) -> None:
    """
    Make a change in a cluster.

    Raises:
        KubeError: the API server; make it again.
        UserError: helm.
    """
    if isinstance(change, Trust):
        await _trust(change, cluster, kube, helm, chart)
        return
    if isinstance(change, Connect):
        content: str | None = base64.b64encode(change.file.encode()).decode()
    else:
        content = None  # in a merge patch: away with it
    await _put(kube, SECRETS, CLUSTERS, cluster.namespace, {str(change.peer): content})


def check_helm(cluster: ClusterRow, helm: Helm, chart: str | None) -> str | None:
    """Why a release cannot be changed without more ado, or None if it can."""
    if not helm.is_there:
        return f"to let {cluster.name} trust another CA takes helm, and there is no {helm.program}"
    version = chart_version(chart)
    if version is not None and cluster.version and version != cluster.version:
        return f"{cluster.name} has version {cluster.version} of the chart, and this is {version}"
    return None


async def _trust(
    change: Trust, cluster: ClusterRow, kube: Kube, helm: Helm, chart: str | None
) -> None:
    """
    The ConfigMap first: pods wait for it. Then the release, whose apiserver starts anew with it.

    The annotation is what makes it start: etcd reads its CAs then only.
    """
    pem = bundle_pem(change.bundle)
    await _put(kube, CONFIG_MAPS, BUNDLE, cluster.namespace, {"ca.crt": pem})
    values = {
        "tls": {"caBundle": {"enabled": True, "name": BUNDLE, "key": "ca.crt"}},
        "clustermesh": {"apiserver": {"podAnnotations": {BUNDLE_READ: bundle_hash(pem)}}},
    }
    await asyncio.to_thread(helm.upgrade, cluster.release, cluster.namespace, values, chart=chart)


async def _put(
    kube: Kube, resource: Resource, name: str, namespace: str, data: dict[str, str | None]
) -> None:
    """Change keys of a ConfigMap or Secret, which is made if it is not there."""
    there = await read_data(kube, resource, name, namespace)
    if not there.metadata.name:
        item: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Secret" if resource is SECRETS else "ConfigMap",
            "metadata": {
                "name": name,
                "labels": {MANAGED_BY: OURS, "app.kubernetes.io/part-of": OURS},
            },
            "data": {key: text for key, text in data.items() if text is not None},
        }
        try:
            await kube.create(resource, item, namespace=namespace)
        except ConflictError:
            raise UserError(
                f"{namespace}/{name} was made by somebody else at this moment", hint="run it again"
            ) from None
        return
    await kube.patch(resource, name, {"data": data}, namespace=namespace)
