from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Final, Literal

from clustermesh.errors import UserError
from clustermesh.model import IPNetwork, parse_cluster_name
from clustermesh.settings import (
    CommaSeparated,
    DaemonSettings,
    check_node_name,
    parse_address,
)

from .kernel.tunnel import Tunnel, TunnelProtocol
from .lanes import PORTS
from .rows import Routing, Routings

_LEAST_MTU: Final = 1280 + 70  # what every IPv6 packet may have, in a tunnel over IPv6


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentSettings(DaemonSettings):
    """Join this node to the mesh: read every cluster's etcd, and program the kernel."""

    node_name: str
    "Name of this node in its cluster."

    local_etcd_config: Path
    "File that says how to reach this cluster's own etcd (the format of an etcd client)."

    clusters_dir: Path
    "Directory with such a file for each remote cluster, named as the cluster; may change any time."

    mirrored: bool = False
    "Read those clusters from the copies in our own etcd that an apiserver with --mirror keeps."

    datapath: Literal["bpf", "none"] = "bpf"
    "bpf programs this node's kernel; none only computes what it would, and needs no root."

    routing: Literal["tunnel", "direct", "native"] = "tunnel"
    "tunnel wraps pod packets; direct gives them to the node; native to a network that knows it."

    cluster_routing: CommaSeparated = ()
    "Clusters to which it is another one: west=direct,north=native. They must say the same of us."

    tunnel_protocol: Literal["vxlan", "geneve"] = "vxlan"
    "What the tunnel wraps packets in; the same in all clusters."

    tunnel_port: int = 0
    "UDP port of the tunnel, the same in all clusters; 0: 8472 for vxlan, 6081 for geneve."

    mtu: int = 0
    "Bytes of the largest packet that fits between nodes, tunnel included; 0: as their device says."

    encryption: Literal["none", "wireguard"] = "none"
    "wireguard encrypts between nodes of different clusters, and lets nothing pass in plain text."

    encryption_port: int = 51871
    "First of the four UDP ports of WireGuard; the same on every node of the mesh."

    encryption_keepalive: int = 0
    "Seconds between packets to silent peers, which keep a NAT in between open; 0: none."

    encryption_key_age: float = 0.0
    "Hours after which this node changes its WireGuard key; 0: when it is told to."

    encryption_sockets: Path = Path("/var/run/wireguard")
    "Directory for the sockets of wireguard-go, where the kernel has no WireGuard."

    fast_path: Literal["on", "off"] = "off"
    "Carry TCP and UDP of pods past the host's stack, and past all firewall rules of the node."

    probe_port: int = 4240
    "UDP port at which nodes ask each other whether packets get through; 0: none does."

    mesh_cidrs: CommaSeparated = ()
    "Networks that what is routed to other clusters must be in; by default any that is nobody's."

    bpffs: Path = Path("/sys/fs/bpf")
    "Mounted BPF filesystem to pin programs and maps in, so that they outlive the agent."

    cgroup: Path = Path("/sys/fs/cgroup")
    "Cgroup (v2) whose processes are load-balanced."

    sysctls: Path = Path("/proc/sys/net")
    "Where the network's sysctls can be written: in a container /proc/sys is read-only."

    state_dir: Path = Path("/var/lib/clustermesh")
    "Directory for what has to survive a restart of the agent."

    mesh_node_dir: Path | None = None
    "Directory that an apiserver reads (--source dir:PATH), to write this node's MeshNode in."

    kubeconfig: Path | None = None
    "File that says how to reach the API server, to write this node's MeshNode; as in a pod if not."

    context: str | None = None
    "Name of a context in that file, or in kubectl's; by default the current."

    listen: str = "127.0.0.1:9879"
    "HOST:PORT or unix:PATH for health, metrics, status and tables."

    def __post_init__(self) -> None:
        DaemonSettings.__post_init__(self)
        check_node_name(self.node_name)
        parse_address(self.listen)
        _ = self.allowed, self.routings
        if not 0 <= self.tunnel_port <= 0xFFFF:
            raise UserError(f"--tunnel-port {self.tunnel_port} is no port")
        if not 0 <= self.probe_port <= 0xFFFF:
            raise UserError(f"--probe-port {self.probe_port} is no port")
        if self.mtu and not _LEAST_MTU <= self.mtu <= 0xFFFF:
            raise UserError(
                f"--mtu {self.mtu} is out of range", hint=f"choose {_LEAST_MTU}-65535, or 0"
            )
        self._check_encryption()

    @property
    def allowed(self) -> tuple[IPNetwork, ...]:
        """The networks of `mesh_cidrs`. Raises UserError: one of them is none."""
        try:
            return tuple(ip_network(text) for text in self.mesh_cidrs)
        except ValueError as error:
            raise UserError(f"--mesh-cidrs: {error}", hint="write 10.0.0.0/8,fd00::/8") from error

    @property
    def routings(self) -> Routings:
        """`routing` and `cluster_routing`. Raises UserError: the latter makes no sense."""
        by_cluster = {}
        for text in self.cluster_routing:
            name, _, routing = text.partition("=")
            if routing not in set(Routing):
                raise UserError(
                    f"--cluster-routing: {text!r} names no routing",
                    hint=f"write CLUSTER={'|'.join(Routing)}",
                )
            by_cluster[parse_cluster_name(name)] = Routing(routing)
        return Routings(Routing(self.routing), by_cluster)

    @property
    def tunnel(self) -> Tunnel:
        """`tunnel_protocol` and `tunnel_port`."""
        return Tunnel(TunnelProtocol(self.tunnel_protocol), self.tunnel_port)

    @property
    def encrypts(self) -> bool:
        """Whether what goes to other clusters is encrypted."""
        return self.encryption != "none"

    @property
    def knows_kubernetes(self) -> bool:
        """Whether there are credentials for Kubernetes, given or as every pod has them."""
        return bool(self.kubeconfig or self.context or os.environ.get("KUBERNETES_SERVICE_HOST"))

    def _check_encryption(self) -> None:
        if not 1 <= self.encryption_port <= 0xFFFF - (PORTS - 1):
            raise UserError(
                f"--encryption-port {self.encryption_port} is out of range", hint="choose 1-65532"
            )
        if not 0 <= self.encryption_keepalive <= 0xFFFF:
            raise UserError(
                f"--encryption-keepalive {self.encryption_keepalive} is out of range",
                hint="choose 0-65535",
            )
        if not self.encryption_key_age >= 0:
            raise UserError("--encryption-key-age is negative", hint="0 for no rotation by age")
        if self.encrypts and self.datapath == "none":
            raise UserError("--encryption wireguard needs --datapath bpf")
