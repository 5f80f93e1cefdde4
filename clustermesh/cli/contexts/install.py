"""`clustermesh install`, `enable` and `disable`: the chart, by the user's own helm."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cyclopts import Parameter

import certs
from clustermesh.errors import UserError
from clustermesh.kube import Kube
from clustermesh.model import parse_cluster_id, parse_cluster_name
from clustermesh.settings import CommaSeparated

from .connect import opened
from .helm import Helm
from .installation import find_apiserver, open_kube, read_cluster
from .objects import CLUSTERS, DEPLOYMENTS, SECRETS, Workload, items, read_data, selector
from .options import Chart, Context, Flag, HelmProgram, Kubeconfig, Namespace, run

_ServiceType = Literal["NodePort", "LoadBalancer", "ClusterIP"]
_Names = Annotated[
    CommaSeparated,
    Parameter(name="--server-name", help="A DNS name or address that other clusters dial."),
]
_Set = Annotated[
    tuple[str, ...],
    Parameter(name="--set", negative="", help="A value of the chart, as for helm. Repeatable."),
]
_Values = Annotated[
    tuple[Path, ...],
    Parameter(name=("--values", "-f"), negative="", help="A file of values. Repeatable."),
]
_CA: Final = "clustermesh-ca"
_WAIT: Final = ("--wait", "--timeout=5m")


def install(
    *,
    context: Context = None,
    cluster_name: str,
    cluster_id: int,
    namespace: Annotated[str, Parameter(name=("--namespace", "-n"))] = certs.NAMESPACE,
    inherit_ca: str | None = None,
    service_type: _ServiceType | None = None,
    server_name: _Names = (),
    set_: _Set = (),
    values: _Values = (),
    max_connected_clusters: Literal[255, 511] | None = None,
    wait: Annotated[bool, Flag] = False,
    dry_run: Annotated[bool, Flag] = False,
    kubeconfig: Kubeconfig = None,
    chart: Chart = None,
    helm: HelmProgram = "helm",
) -> None:
    """
    Install clustermesh into a cluster, or upgrade it: `helm upgrade --install` with the chart.

    What was set before stays set, unless it is set anew.

    Parameters
    ----------
    cluster_name
        Name of the cluster; unique in the mesh, and for good.
    cluster_id
        Number of the cluster; unique in the mesh, and for good.
    namespace
        Where it is installed.
    inherit_ca
        Context of a cluster that it shares the CA with; then there is nothing to merge later.
    service_type
        How other clusters reach the etcd; the chart's default is NodePort.
    max_connected_clusters
        How many clusters the mesh may have; the same in all of them. The default is 255.
    wait
        Wait until everything runs, five minutes at most.
    dry_run
        Have the API server check it all, and change nothing.
    """
    name = parse_cluster_name(cluster_name)
    parse_cluster_id(cluster_id, max_connected_clusters or 511)  # the chart knows the default
    wanted: dict[str, Any] = {
        "cluster": {"name": name, "id": cluster_id},
        "clustermesh": {"apiserver": _reachable(service_type, server_name)},
    }
    if max_connected_clusters:
        wanted["clustermesh"]["maxConnectedClusters"] = max_connected_clusters
    run(_check_upgrade(kubeconfig, context, namespace, name, cluster_id))
    if inherit_ca:
        wanted["tls"] = {"ca": run(_read_ca(kubeconfig, inherit_ca))}
    arguments = ["--install", "--create-namespace"]
    arguments += [f"--set={text}" for text in set_]
    arguments += [f"--values={path}" for path in values]
    arguments += [*_WAIT] if wait else []
    arguments += ["--dry-run=server"] if dry_run else []
    said = Helm(helm, kubeconfig, context).upgrade(
        "clustermesh", namespace, wanted, chart=chart, arguments=arguments
    )
    if dry_run:
        print(f"{name} could be installed; nothing was changed")
    else:
        print(said.partition("NOTES:\n")[2].strip() or said.strip())


def enable(
    *,
    context: Context = None,
    service_type: _ServiceType | None = None,
    server_name: _Names = (),
    namespace: Namespace = None,
    wait: Annotated[bool, Flag] = False,
    kubeconfig: Kubeconfig = None,
    chart: Chart = None,
    helm: HelmProgram = "helm",
) -> None:
    """
    Let other clusters reach a cluster: choose how its etcd is exposed, and what its name is.

    Parameters
    ----------
    service_type
        LoadBalancer, NodePort (any node's address), or ClusterIP (where Services are routed).
    wait
        Wait until everything runs, five minutes at most.
    """
    if service_type is None and not server_name:
        raise UserError("nothing is to be changed", hint="say --service-type, --server-name")
    changed = {"clustermesh": {"apiserver": _reachable(service_type, server_name)}}
    helm_ = Helm(helm, kubeconfig, context)
    run(_upgrade(helm_, namespace, changed, chart, _WAIT if wait else ()))


def disable(
    *,
    context: Context = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    chart: Chart = None,
    helm: HelmProgram = "helm",
) -> None:
    """
    Take a cluster out of the mesh: its agents withdraw all others, and its etcd is not exposed.

    The others keep what they know of it as long as they are not disconnected from it.
    """
    helm_ = Helm(helm, kubeconfig, context)
    run(_disable(helm_, namespace, chart))


async def _disable(helm: Helm, namespace: str | None, chart: str | None) -> None:
    context = helm.context or "the current context"
    async with open_kube(helm.kubeconfig, helm.context) as kube:
        cluster = await read_cluster(kube, context, namespace)
        if cluster.peers_by_chart:
            raise UserError(
                f"{cluster.name}: its connected clusters are written by helm",
                hint="set clustermesh.config.enabled=false",
            )
        await kube.delete(SECRETS, CLUSTERS, namespace=cluster.namespace)
    if cluster.peers:
        print(f"{cluster.name}: disconnected from {', '.join(sorted(cluster.peers))}")
    closed = {"clustermesh": {"apiserver": _reachable("ClusterIP", ())}}
    await _upgrade(helm, cluster.namespace, closed, chart, ())
    for peer in sorted(cluster.peers):
        print(f"left to do: in {peer}, clustermesh disconnect from {cluster.name}")


async def _upgrade(
    helm: Helm,
    namespace: str | None,
    changed: dict[str, Any],
    chart: str | None,
    arguments: Sequence[str],
) -> None:
    """Change values of what is installed, and keep all others."""
    async with open_kube(helm.kubeconfig, helm.context) as kube:
        found = await find_apiserver(kube, helm.context or "the current context", namespace)
    release = found.metadata.labels.get("app.kubernetes.io/instance", "clustermesh")
    there = found.metadata.namespace
    helm.upgrade(release, there, changed, chart=chart, arguments=arguments)
    print(f"release {there}/{release}: upgraded")


def _reachable(service_type: str | None, server_names: Sequence[str]) -> dict[str, Any]:
    """Values by which other clusters reach the etcd."""
    values: dict[str, Any] = {}
    if service_type:
        values["service"] = {"type": service_type}
    if server_names:
        names = {name: _is_address(name) for name in server_names}
        values["tls"] = {
            "server": {
                "extraDnsNames": [name for name, is_address in names.items() if not is_address],
                "extraIpAddresses": [name for name, is_address in names.items() if is_address],
            }
        }
    return values


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


async def _check_upgrade(
    kubeconfig: Path | None, context: str | None, namespace: str, name: str, number: int
) -> None:
    """
    See that a cluster that is installed keeps its name and number.

    Raises:
        UserError: it would not, or it is installed in another namespace.
    """
    async with open_kube(kubeconfig, context) as kube:
        found = await items(kube, DEPLOYMENTS, Workload, labels=selector("apiserver"))
        for one in found:
            if one.metadata.namespace != namespace:
                raise UserError(
                    f"clustermesh is installed in namespace {one.metadata.namespace} already",
                    hint=f"add --namespace {one.metadata.namespace}",
                )
            cluster = await read_cluster(kube, context or "the current context", namespace)
            if (cluster.name, cluster.id) != (name, number):
                raise UserError(
                    f"this cluster is {cluster.name} with id {cluster.id}, and stays so: others "
                    "know its identities by that",
                    hint="uninstall it first, with all clusters disconnected",
                )


async def _read_ca(kubeconfig: Path | None, context: str) -> dict[str, str]:
    async with opened(kubeconfig, [context]) as kubes:
        kube: Kube = kubes[context]
        namespace = (await find_apiserver(kube, context, None)).metadata.namespace
        secret = await read_data(kube, SECRETS, _CA, namespace)
    if not {"ca.crt", "ca.key"} <= secret.data.keys():
        raise UserError(f"{context} has no Secret {_CA} with a CA that could be shared")
    files = secret.decoded()
    # Of a bundle only the CA that signs.
    key = load_pem_private_key(files["ca.key"], password=None).public_key()
    bundle = x509.load_pem_x509_certificates(files["ca.crt"])
    (own,) = (ca for ca in bundle if ca.public_key() == key)
    pem = own.public_bytes(Encoding.PEM)
    return {"cert": base64.b64encode(pem).decode(), "key": secret.data["ca.key"]}
