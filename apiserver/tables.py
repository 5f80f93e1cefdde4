"""The tables of the apiserver: what was read of the cluster, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clustermesh import model
from clustermesh.model import IdentityId, IPAddress, ObjectName
from clustermesh.state import Table

from .objects import AnyObject, EndpointSlice, MeshNode, Namespace, Node, Pod, Service
from .rules.endpoints import Claim


@dataclass(frozen=True)
class Objects:
    """What the cluster's source of state says, by kind. A row's origin is the file it is from."""

    namespaces: Table[ObjectName, Namespace] = field(default_factory=lambda: Table("namespaces"))
    nodes: Table[ObjectName, Node] = field(default_factory=lambda: Table("nodes"))
    mesh_nodes: Table[ObjectName, MeshNode] = field(default_factory=lambda: Table("mesh-nodes"))
    pods: Table[ObjectName, Pod] = field(default_factory=lambda: Table("pods"))
    services: Table[ObjectName, Service] = field(default_factory=lambda: Table("services"))
    slices: Table[ObjectName, EndpointSlice] = field(
        default_factory=lambda: Table("endpointslices")
    )

    @property
    def by_kind(self) -> Mapping[type[AnyObject], Table[ObjectName, Any]]:
        """Each table by the kind of object in it."""
        return {
            Namespace: self.namespaces,
            Node: self.nodes,
            MeshNode: self.mesh_nodes,
            Pod: self.pods,
            Service: self.services,
            EndpointSlice: self.slices,
        }


@dataclass(frozen=True)
class Exports:
    """What is derived, and then written to etcd."""

    nodes: Table[str, model.Node] = field(default_factory=lambda: Table("nodes"))
    services: Table[ObjectName, model.Service] = field(default_factory=lambda: Table("services"))
    claims: Table[IPAddress, Claim] = field(default_factory=lambda: Table("claims"))
    identities: Table[IdentityId, model.Identity] = field(
        default_factory=lambda: Table("identities")
    )
    endpoints: Table[IPAddress, model.Endpoint] = field(default_factory=lambda: Table("endpoints"))
