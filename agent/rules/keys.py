"""Between which nodes nothing may be sent: encryption that one side lacks, keys that are none."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from agent.lanes import check_public_key
from agent.rows import NodeName
from clustermesh.errors import BadRowError
from clustermesh.model import ClusterName, Node


def closed(
    nodes: Iterable[Node], own: ClusterName, own_keys: Collection[str], *, encrypts: bool
) -> Mapping[NodeName, str]:
    """
    The nodes of other clusters that nothing may be sent to, each with the reason.

    Of two nodes with one key the one of the cluster with the lower id has it, the same one on every
    node of the mesh. Our own key is nobody else's.
    """
    found: dict[NodeName, str] = {}
    holders: dict[str, NodeName] = {}
    for node in sorted(nodes, key=lambda node: (node.cluster_id, node.name)):
        name = NodeName(node.cluster, node.name)
        key = node.wireguard_public_key
        if node.cluster == own:
            if key:
                holders.setdefault(key, name)
        elif encrypts:
            if reason := _unusable(key, own_keys, holders):
                found[name] = reason
            else:
                holders[key] = name
        elif key:
            found[name] = "it encrypts, and we do not: see --encryption"
    return found


def _unusable(key: str, own_keys: Collection[str], holders: Mapping[str, NodeName]) -> str:
    """Why a peer cannot have such a key; empty if it can."""
    if not key:
        return "we encrypt, and it has no WireGuard key: see --encryption there"
    try:
        check_public_key(key)
    except BadRowError as error:
        return str(error)
    if key in own_keys:
        return "its WireGuard key is our own"
    if holder := holders.get(key):
        return f"its WireGuard key is that of {holder}"
    return ""
