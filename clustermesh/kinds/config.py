"""`cilium/cluster-config/<cluster>`: how a cluster introduces itself."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import field

from clustermesh.errors import BadRowError
from clustermesh.model import (
    ClusterConfig,
    ClusterId,
)

from .checks import decode_json


class _Capabilities(msgspec.Struct, rename="camel", omit_defaults=True):
    synced_canaries: bool = False
    max_connected_clusters: int = 255
    service_exports_enabled: bool | None = None
    cached: bool = False


class _ClusterConfig(msgspec.Struct, rename="camel"):
    id: int = 0
    capabilities: _Capabilities = field(default_factory=_Capabilities)


def encode_cluster_config(config: ClusterConfig) -> bytes:
    """The JSON of `cilium/cluster-config/<cluster>`."""
    capabilities: dict[str, Any] = {
        "syncedCanaries": config.synced_canaries,
        "maxConnectedClusters": config.max_connected_clusters,
        "serviceExportsEnabled": config.service_exports_enabled,
    }
    if config.cached:
        capabilities["cached"] = True
    return msgspec.json.encode({"id": config.id, "capabilities": capabilities})


def decode_cluster_config(value: bytes) -> ClusterConfig:
    """
    Read a cluster-config.

    Raises:
        BadRowError: it is no cluster-config, or its id is no cluster id.
    """
    wire = decode_json(_CLUSTER_CONFIG, value)
    capabilities = wire.capabilities
    if capabilities.max_connected_clusters not in {255, 511}:
        raise BadRowError(
            f"maxConnectedClusters is {capabilities.max_connected_clusters}, not 255 or 511"
        )
    if not 1 <= wire.id <= capabilities.max_connected_clusters:
        raise BadRowError(f"cluster id {wire.id} is not in 1-{capabilities.max_connected_clusters}")
    return ClusterConfig(
        ClusterId(wire.id),
        capabilities.max_connected_clusters,
        capabilities.synced_canaries,
        bool(capabilities.service_exports_enabled),
        capabilities.cached,
    )


_CLUSTER_CONFIG: Final = msgspec.json.Decoder(_ClusterConfig)
