"""Why a backend is there, or is not: merging a global service over the clusters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from agent.rows import Backend, BackendState, Cidr, Frontend
from clustermesh.model import (
    Affinity,
    ClusterName,
    IPAddress,
    L4Address,
    ObjectName,
    Port,
    Service,
)


def frontends(
    key: ObjectName,
    rows: Mapping[str, Service],
    *,
    own: ClusterName,
    owner: Callable[[IPAddress], Cidr | None],
    encrypts: bool = False,
) -> Mapping[L4Address, Frontend]:
    """
    The frontends of the global service `key`, each with every backend of its IP family.

    Only a service that our own cluster has, and calls global, is merged. Ports of frontends and
    backends meet by name: the number may differ from cluster to cluster, and several names may
    stand on one port. Another cluster's backend counts only if no other cluster owns its
    address, and if something may be sent to its node.

    Args:
        rows: the service as each cluster sees it.
        owner: whose an address is.
        encrypts: another cluster's backend is used only if it is led to its node, over WireGuard.
    """
    local = rows.get(own)
    if local is None:
        return {}
    # Of clusters that name one backend the last here has it, the same one on every node.
    by_rank = sorted(rows.values(), key=lambda row: (row is local, -row.cluster_id))
    found: dict[L4Address, Frontend] = {}
    for ip, ports in local.frontends.items():
        for name, port in ports.items():
            address = L4Address(ip, port.port, port.protocol)
            backends = {
                backend: service.cluster
                for service in by_rank
                for backend in _backends(service, ip.version, name, port)
                if service is local or _may_serve(service, owner(backend.ip))
            }
            if address in found:  # a second name on the same port
                backends |= {b.address: b.cluster for b in found[address].backends}
            plain = {
                backend
                for backend, cluster in backends.items()
                if encrypts and cluster != own and not _is_routed(owner(backend.ip))
            }
            found[address] = Frontend(
                key, local.affinity, tuple(_sorted(backends, plain, own, local.affinity))
            )
    return found


def _backends(service: Service, version: int, name: str, port: Port) -> Iterator[L4Address]:
    for ip, ports in service.backends.items():
        if ip.version == version:
            target = ports.get(name)
            if target is not None and target.protocol == port.protocol:
                yield L4Address(ip, target.port, target.protocol)


def _may_serve(service: Service, owner: Cidr | None) -> bool:
    return owner is None or (owner.cluster == service.cluster and not owner.closed)


def _is_routed(owner: Cidr | None) -> bool:
    return owner is not None and not owner.unrouted


def _sorted(
    backends: Mapping[L4Address, ClusterName],
    plain: Collection[L4Address],
    own: ClusterName,
    affinity: Affinity,
) -> Iterator[Backend]:
    """All backends by address; those that the affinity does not want now are on standby."""
    usable = {a: cluster for a, cluster in backends.items() if a not in plain}
    wanted: Collection[L4Address] = usable
    if affinity is not Affinity.NONE:
        is_local = affinity is Affinity.LOCAL
        wanted = {a for a, cluster in usable.items() if (cluster == own) is is_local} or usable
    for address in sorted(backends, key=lambda a: (int(a.ip), a.port)):
        if address in plain:
            state = BackendState.UNENCRYPTED
        else:
            state = BackendState.ACTIVE if address in wanted else BackendState.STANDBY
        yield Backend(address, backends[address], state)
