"""
A thin client of etcd v3, and an etcd prefix as a source and as a target of the state mechanism.

    etcd_source ─┐                    ┌─ connection.py  gRPC channels to one endpoint
    EtcdTarget ──┼─▶ Etcd ─▶ Transport ┼─ credentials.py  certificate files
    Auth, Leases ┘                    └─ probe.py  why it cannot be reached

Public clients were tried, and lose events over a cut connection, hang after a compaction, or know
no TLS. The messages are generated from `rpc.proto`.
"""

from clustermesh.health import Health

from .auth import Auth, Permission, readable
from .client import Etcd, Outcome, Page, Revision
from .config import Endpoint, EtcdConfig, make_config, read_config
from .errors import DeniedError, EtcdError, HistoryLostError, LeaseLostError, UnreachableError
from .lease import Leases
from .probe import probe
from .source import etcd_source
from .target import EtcdTarget
from .txn import Write

__all__ = [
    "Auth",
    "DeniedError",
    "Endpoint",
    "Etcd",
    "EtcdConfig",
    "EtcdError",
    "EtcdTarget",
    "Health",
    "HistoryLostError",
    "LeaseLostError",
    "Leases",
    "Outcome",
    "Page",
    "Permission",
    "Revision",
    "UnreachableError",
    "Write",
    "etcd_source",
    "make_config",
    "probe",
    "read_config",
    "readable",
]
