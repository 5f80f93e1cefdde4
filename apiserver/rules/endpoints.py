"""
What Pods become for the mesh: addresses, each with the identity of its pod's labels.

    pods ──claims──▶ claims (by address) ──Index by labels──┐
                                                            ├─endpoints──▶ endpoints (by address)
    identities (allocated) ──Index by labels────────────────┘
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final, TypeAlias

import msgspec

from apiserver.objects import Namespace, Pod
from clustermesh.kinds import (
    CLUSTER_LABEL,
    NAMESPACE_LABEL,
    NAMESPACE_LABELS_PREFIX,
    SERVICE_ACCOUNT_LABEL,
)
from clustermesh.model import (
    ClusterName,
    Endpoint,
    Identity,
    IdentityId,
    IPAddress,
    ObjectName,
    Protocol,
)

_GENERATED: Final = frozenset(
    {
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-completion-index",
        "controller-revision-hash",
        "controller-uid",
        "pod-template-generation",
        "pod-template-hash",
        "statefulset.kubernetes.io/pod-name",
    }
)
"""Labels that controllers make up for each revision or pod: with them, each rollout would need new
identities, and a StatefulSet one for each pod. Cilium leaves them out by default too."""

Labels: TypeAlias = tuple[tuple[str, str, str], ...]
"""(source, key, value), sorted: what an identity stands for."""


class Claim(msgspec.Struct, frozen=True, gc=False):
    """A pod that has an address, before it is known which number its labels have."""

    pod: ObjectName
    uid: str
    node_ip: IPAddress | None
    service_account: str
    labels: Labels
    named_ports: tuple[tuple[str, int, Protocol], ...]


def claims(
    key: ObjectName, pods: Mapping[str, Pod], namespace: Namespace | None, *, cluster: ClusterName
) -> Mapping[IPAddress, Claim]:
    """
    The addresses of the pod `key`.

    A pod on the host's network has its node's addresses, and one that has ended has none any more.
    """
    pod = next(iter(pods.values()), None)
    if pod is None or pod.spec.host_network or pod.status.phase in {"Succeeded", "Failed"}:
        return {}
    status = pod.status
    texts = [p.ip for p in status.pod_ips] or [status.pod_ip]
    claim = Claim(
        pod=key,
        uid=pod.metadata.uid,
        node_ip=ip_address(status.host_ip) if status.host_ip else None,
        service_account=pod.spec.service_account_name,
        labels=labels(pod, namespace, cluster),
        named_ports=tuple(
            (p.name, p.container_port, Protocol(p.protocol))
            for container in pod.spec.containers
            for p in container.ports
            if p.name
        ),
    )
    return {ip_address(text): claim for text in texts if text}


def labels(pod: Pod, namespace: Namespace | None, cluster: ClusterName) -> Labels:
    """What tells pods of one identity from those of another."""
    of_namespace = namespace.metadata.labels if namespace else {}
    found = {
        **{k: v for k, v in pod.metadata.labels.items() if k not in _GENERATED},
        **{f"{NAMESPACE_LABELS_PREFIX}{key}": value for key, value in of_namespace.items()},
        NAMESPACE_LABEL: pod.metadata.namespace,
        SERVICE_ACCOUNT_LABEL: pod.spec.service_account_name,
        CLUSTER_LABEL: cluster,
    }
    return tuple(sorted(("k8s", key, value) for key, value in found.items()))


def endpoints(
    key: Labels, claimed: Mapping[IPAddress, Claim], identities: Mapping[IdentityId, Identity]
) -> Mapping[IPAddress, Endpoint]:
    """The addresses whose pods have the labels `key`, once these have a number."""
    del key
    identity = min(identities, default=None)
    if identity is None:
        return {}
    return {
        ip: Endpoint(
            ip=ip,
            node_ip=claim.node_ip,
            identity=identity,
            pod=claim.pod,
            uid=claim.uid,
            service_account=claim.service_account,
            named_ports=claim.named_ports,
        )
        for ip, claim in claimed.items()
    }
