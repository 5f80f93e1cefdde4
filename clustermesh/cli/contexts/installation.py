"""Read what a cluster has installed, and what it is, from its API server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from certs.ca import common_name, is_issued_by
from clustermesh.errors import UserError
from clustermesh.kube import Kube, KubeError, NotFoundError, read_kubeconfig
from clustermesh.model import IPNetwork, parse_cluster_name
from clustermesh.settings import TcpAddress

from .objects import (
    APISERVER,
    BUNDLE,
    BUNDLE_READ,
    CLUSTERS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    MANAGED_BY,
    NODES,
    OURS,
    REMOTE_CERT,
    SECRETS,
    SERVER_CERT,
    SERVICE_CIDRS,
    SERVICES,
    Data,
    Node,
    Service,
    ServiceCidr,
    Settings,
    Workload,
    items,
    read_data,
    selector,
)
from .plan import bundle_hash, peers_of
from .rows import Authority, ClusterRow, NodeRow

_ETCD_PORT: Final = 2379
_NODES_DIALLED: Final = 5
"""Nodes that a NodePort is dialled at: enough to outlive some of them."""


class Login(NamedTuple):
    """What a cluster shows to the others' etcds, and whom it trusts. PEM."""

    ca: bytes
    certificate: bytes
    key: bytes


def open_kube(kubeconfig: Path | None, context: str | None) -> Kube:
    """
    The API server of a context; None is the current one.

    Raises:
        UserError: there is no such context, or it makes no sense.
    """
    return Kube(read_kubeconfig((kubeconfig,) if kubeconfig else (), context))


async def find_apiserver(kube: Kube, context: str, namespace: str | None) -> Workload:
    """
    The installation in a cluster, by its Deployment.

    Raises:
        UserError: there is none, or several.
        KubeError: the API server.
    """
    where = namespace or ""
    found = await items(kube, DEPLOYMENTS, Workload, namespace=where, labels=selector("apiserver"))
    if not found:
        place = f"namespace {namespace} of {context}" if namespace else context
        raise UserError(
            f"clustermesh is not installed in {place}",
            hint=f"clustermesh install --context {context} --cluster-name NAME --cluster-id N",
        )
    if len(found) > 1:
        names = ", ".join(one.metadata.namespace for one in found)
        raise UserError(f"clustermesh is installed twice in {context}: {names}", hint="add -n")
    return found[0]


async def read_cluster(kube: Kube, context: str, namespace: str | None) -> ClusterRow:
    """
    What a cluster is.

    Args:
        namespace: of the installation; None looks for it everywhere.

    Raises:
        UserError: nothing is installed there, or it is not complete.
        KubeError: the API server.
    """
    deployment = await find_apiserver(kube, context, namespace)
    there = deployment.metadata.namespace
    try:
        config, service, server, remote = await asyncio.gather(
            kube.get(CONFIG_MAPS, "clustermesh-config", Data, namespace=there),
            kube.get(SERVICES, APISERVER, Service, namespace=there),
            kube.get(SECRETS, SERVER_CERT, Data, namespace=there),
            kube.get(SECRETS, REMOTE_CERT, Data, namespace=there),
        )
    except NotFoundError as error:
        raise UserError(
            f"{context}: the installation in {there} is not complete: {error}",
            hint="certificates may not have been made yet: kubectl get pods,jobs",
        ) from error
    nodes, cidrs, clusters, bundle = await asyncio.gather(
        items(kube, NODES, Node),
        _service_cidrs(kube),
        read_data(kube, SECRETS, CLUSTERS, there),
        read_data(kube, CONFIG_MAPS, _bundle_name(deployment) or BUNDLE, there),
    )
    settings = read_settings(context, config)
    node_rows = tuple(sorted(map(_node_row, nodes)))
    certificate = _certificates(context, SERVER_CERT, server.decoded()["tls.crt"])[0]
    own = _authorities(context, SERVER_CERT, server.decoded()["ca.crt"])
    reached, why_not = endpoints_of(service, node_rows)
    pem = bundle.data.get("ca.crt", "")
    trusted = _authorities(context, BUNDLE, pem.encode()) if pem else own
    return ClusterRow(
        context=context,
        namespace=there,
        name=parse_cluster_name(settings.cluster_name),
        id=settings.cluster_id,
        max_connected_clusters=settings.max_connected_clusters,
        routing=settings.routing,
        encryption=settings.encryption,
        cluster_routing=dict(one.split("=") for one in settings.cluster_routing.split(",") if one),
        tunnel=f"{settings.tunnel_protocol} on port {settings.tunnel_port or 'as usual'}",
        version=deployment.metadata.labels.get("app.kubernetes.io/version", ""),
        release=deployment.metadata.labels.get("app.kubernetes.io/instance", "clustermesh"),
        user=common_name(_certificates(context, REMOTE_CERT, remote.decoded()["tls.crt"])[0]),
        nodes=node_rows,
        service_cidrs=cidrs,
        endpoints=reached,
        no_endpoint=why_not,
        server_names=_names(certificate),
        authority=_signer(certificate, own),
        trusted=trusted,
        bundle_in_use=_bundle_in_use(deployment, bundle),
        bundle_by_chart=bundle.metadata.labels.get(MANAGED_BY) == "Helm",
        peers=peers_of({name: text.decode() for name, text in clusters.decoded().items()}),
        peers_by_chart=clusters.metadata.labels.get(MANAGED_BY) == "Helm",
    )


async def read_login(kube: Kube, cluster: ClusterRow) -> Login:
    """What the agents of a cluster show to others."""
    secret = await kube.get(SECRETS, REMOTE_CERT, Data, namespace=cluster.namespace)
    files = secret.decoded()
    trusted = "".join(authority.pem for authority in cluster.trusted)
    return Login(trusted.encode(), files["tls.crt"], files["tls.key"])


async def _service_cidrs(kube: Kube) -> tuple[IPNetwork, ...]:
    try:
        found = await items(kube, SERVICE_CIDRS, ServiceCidr)
    except KubeError:  # a kind that is newer than some servers; and it only makes a warning
        return ()
    return tuple(ip_network(text) for one in found for text in one.spec.cidrs)


def read_settings(context: str, config: Data) -> Settings:
    """
    The settings of the daemons of a cluster.

    Raises:
        UserError: they make no sense.
    """
    try:
        files = [yaml.safe_load(config.data[f"{name}.yaml"]) for name in ("apiserver", "agent")]
        return msgspec.convert({**files[0], **files[1]}, Settings)
    except (KeyError, yaml.YAMLError, TypeError, msgspec.ValidationError) as error:
        raise UserError(
            f"{context}: ConfigMap clustermesh-config makes no sense: {error}"
        ) from None


def _node_row(node: Node) -> NodeRow:
    addresses = (a.address for a in node.status.addresses if a.type == "InternalIP")
    ready = any(c.type == "Ready" and c.status == "True" for c in node.status.conditions)
    return NodeRow(
        node.metadata.name,
        tuple(map(ip_address, addresses)),
        tuple(ip_network(text) for text in node.spec.pod_cidrs),
        ready,
    )


def endpoints_of(service: Service, nodes: Sequence[NodeRow]) -> tuple[tuple[str, ...], str]:
    """Where others reach the etcd; or nowhere, and why."""
    spec = service.spec
    node_port = next((port.node_port for port in spec.ports if port.node_port), 0)
    match spec.type:
        case "LoadBalancer":
            hosts = [one.ip or one.hostname for one in service.status.load_balancer.ingress]
            if not hosts:
                return (), "its Service of type LoadBalancer has no address yet"
            return _at(hosts, _ETCD_PORT), ""
        case "NodePort" if node_port:
            ready = sorted(nodes, key=lambda node: not node.ready)
            dialled = [str(node.addresses[0]) for node in ready if node.addresses]
            if not dialled:
                return (), "its Service is of type NodePort, and there is no node"
            return _at(dialled[:_NODES_DIALLED], node_port), ""
        case "ClusterIP" if spec.cluster_ips:
            return (), "its Service is of type ClusterIP, which others see only if told so"
    return (), f"its Service is of type {spec.type}"


def _at(hosts: Sequence[str], port: int) -> tuple[str, ...]:
    return tuple(str(TcpAddress(host, port)) for host in hosts)


def _bundle_name(deployment: Workload) -> str | None:
    """The ConfigMap whose CAs the apiserver trusts, if it is one."""
    for volume in deployment.spec.template.spec.volumes:
        for source in volume.projected.sources:
            if source.config_map is not None:
                return source.config_map.name
    return None


def _bundle_in_use(deployment: Workload, bundle: Data) -> bool:
    if _bundle_name(deployment) is None:
        return False
    if bundle.metadata.labels.get(MANAGED_BY) != OURS:
        return True  # whoever wrote it sees to that
    read = deployment.spec.template.metadata.annotations.get(BUNDLE_READ)
    return read == bundle_hash(bundle.data.get("ca.crt", ""))


def _certificates(context: str, secret: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise UserError(f"{context}: {secret} holds no certificate: {error}") from None


def _authorities(context: str, name: str, pem: bytes) -> tuple[Authority, ...]:
    return tuple(map(_authority, _certificates(context, name, pem)))


def _authority(certificate: x509.Certificate) -> Authority:
    pem = certificate.public_bytes(Encoding.PEM).decode()
    fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
    return Authority(common_name(certificate), fingerprint, pem)


def _signer(certificate: x509.Certificate, authorities: Sequence[Authority]) -> Authority:
    """The CA that signed; where none of them did, the first, whose peers will say so."""
    for authority in authorities:
        if is_issued_by(certificate, x509.load_pem_x509_certificate(authority.pem.encode())):
            return authority
    return authorities[0]


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = (str(ip) for ip in names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)
