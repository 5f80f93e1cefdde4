"""
A thin client of the Kubernetes API, and a kind of its objects as a source of the state mechanism.

    kube_source ─┐          ┌─ config.py       in a pod, or a kubeconfig file
    Election ────┴─▶ Kube ──┴─ credentials.py  tokens, certificates, programs that give them

The official client decodes every field of every object, which takes a hundred times as long as the
few that we read; here what is listed and watched stays JSON until its reader decodes it.
"""

from .client import Change, Kube, Page, Resource
from .config import KubeConfig, in_cluster, read_kubeconfig
from .election import Election
from .errors import (
    ConflictError,
    DeniedError,
    HistoryLostError,
    KubeError,
    NotFoundError,
    UnreachableError,
)
from .source import kube_source

__all__ = [
    "Change",
    "ConflictError",
    "DeniedError",
    "Election",
    "HistoryLostError",
    "Kube",
    "KubeConfig",
    "KubeError",
    "NotFoundError",
    "Page",
    "Resource",
    "UnreachableError",
    "in_cluster",
    "kube_source",
    "read_kubeconfig",
]
