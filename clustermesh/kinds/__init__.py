"""
What is in etcd: every key and every JSON name, and how it becomes a row of `model.py` and back.
A file for each kind of row.

# STABLE API: this is the schema of Cilium Cluster Mesh (1.14 and later), and clusters of any
# version read each other with it. All string constants and wire field names in here are fixed.

Peers are not trusted. A row is decoded *for an owner*, the cluster whose etcd it came from, and
one that claims to be another cluster's, or that names an address or identity that no cluster can
own, raises BadRowError. What can only be judged by looking at several rows, such as overlapping
CIDRs, is left to the agent's rules.
"""

from .checks import check_pod_cidr, parse_address
from .config import decode_cluster_config, encode_cluster_config
from .endpoints import ENDPOINTS
from .identities import IDENTITIES
from .kind import (
    CLUSTER_CONFIGS,
    CLUSTER_LABEL,
    HEARTBEAT,
    HEARTBEAT_EVERY,
    HEARTBEAT_LOST,
    HEARTBEATS,
    LOCAL,
    NAMESPACE_LABEL,
    NAMESPACE_LABELS_PREFIX,
    RESERVED_IDENTITIES,
    SERVICE_ACCOUNT_LABEL,
    SYNCED,
    Kind,
    Owner,
    cluster_config_key,
    heartbeat_key,
    verbatim,
)
from .nodes import NODES
from .services import LOCAL_SERVICES, SERVICES

__all__ = [
    "CLUSTER_CONFIGS",
    "CLUSTER_LABEL",
    "ENDPOINTS",
    "HEARTBEAT",
    "HEARTBEATS",
    "HEARTBEAT_EVERY",
    "HEARTBEAT_LOST",
    "IDENTITIES",
    "LOCAL",
    "LOCAL_SERVICES",
    "NAMESPACE_LABEL",
    "NAMESPACE_LABELS_PREFIX",
    "NODES",
    "RESERVED_IDENTITIES",
    "SERVICES",
    "SERVICE_ACCOUNT_LABEL",
    "SYNCED",
    "Kind",
    "Owner",
    "check_pod_cidr",
    "cluster_config_key",
    "decode_cluster_config",
    "encode_cluster_config",
    "heartbeat_key",
    "parse_address",
    "verbatim",
]
