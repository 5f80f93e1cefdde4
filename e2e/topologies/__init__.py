"""Nodes as each CNI makes them: one file for each, data only. `node.py` makes a node so."""

from __future__ import annotations

from typing import Final

from . import calico, flannel, ip_masq_agent, kindnet, kube_proxy
from .topology import Topology

TOPOLOGIES: Final[tuple[Topology, ...]] = (
    *flannel.TOPOLOGIES,
    *kindnet.TOPOLOGIES,
    *calico.TOPOLOGIES,
    *kube_proxy.TOPOLOGIES,
    *ip_masq_agent.TOPOLOGIES,
)
