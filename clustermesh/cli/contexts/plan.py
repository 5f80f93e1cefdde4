"""What has to change for clusters to be connected, or not any more. Pure: rows in, changes out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec
import yaml

from clustermesh.model import ClusterName
from clustermesh.settings import TcpAddress, parse_address

from .rows import SERVER_DOMAIN, Authority, ClusterRow

Mode: TypeAlias = Literal["unicast", "bidirectional", "mesh"]

REMOTE: Final = "/etc/clustermesh/remote"
"""STABLE API: where the chart mounts the certificate that logs in to other clusters."""


class Link(NamedTuple):
    """One cluster reads another. Both are named by their contexts."""

    reader: str
    peer: str


class Trust(NamedTuple):
    """Let a cluster trust these CAs, its own among them. Its apiserver restarts."""

    context: str
    bundle: tuple[Authority, ...]
    added: tuple[Authority, ...]

    def __str__(self) -> str:
        added = ", ".join(f"{ca.name!r}" for ca in self.added)
        return f"trust {added}" if added else "use the bundle of CAs, which etcd has not read yet"


class Connect(NamedTuple):
    """Give a cluster the file of a peer."""

    context: str
    peer: ClusterName
    file: str
    before: str = ""  # the file that it has; empty: none

    def __str__(self) -> str:
        endpoints = ", ".join(msgspec.yaml.decode(self.file)["endpoints"])
        return f"{'connect' if not self.before else 'reconnect'} to {self.peer} at {endpoints}"


class Disconnect(NamedTuple):
    """Take the file of a peer away. Agents withdraw all it said."""

    context: str
    peer: ClusterName

    def __str__(self) -> str:
        return f"disconnect from {self.peer}"


Change: TypeAlias = Trust | Connect | Disconnect


def links(source: str, destinations: Sequence[str], mode: Mode) -> list[Link]:
    """Who shall read whom, by contexts."""
    if mode == "mesh":
        everybody = [source, *destinations]
        return [Link(a, b) for a in everybody for b in everybody if a != b]
    found = []
    for destination in destinations:
        found.append(Link(source, destination))
        if mode == "bidirectional":
            found.append(Link(destination, source))
    return found


def connecting(clusters: Sequence[ClusterRow], wanted: Iterable[Link]) -> Iterator[Change]:
    """
    What is missing for `wanted`; nothing where all of it is there already.

    Trust comes first, in every cluster: certificates are shown only when they are believed.
    """
    by_context = {cluster.context: cluster for cluster in clusters}
    wanted = list(wanted)
    writable = {link.reader for link in wanted}
    for cluster in clusters:
        met = {(set(link) - {cluster.context}).pop() for link in wanted if cluster.context in link}
        change = _trust(cluster, [by_context[context].authority for context in sorted(met)])
        if change and cluster.context in writable:
            yield change
    for link in wanted:
        reader, peer = by_context[link.reader], by_context[link.peer]
        file = peer_file(peer)
        before = reader.peers.get(peer.name, "")
        if before != file:
            yield Connect(reader.context, peer.name, file, before)


def disconnecting(clusters: Sequence[ClusterRow], unwanted: Iterable[Link]) -> Iterator[Disconnect]:
    """What has to go so that there is none of `unwanted`."""
    by_context = {cluster.context: cluster for cluster in clusters}
    for link in unwanted:
        reader, peer = by_context[link.reader], by_context[link.peer]
        if peer.name in reader.peers:
            yield Disconnect(reader.context, peer.name)


def left_to_do(clusters: Sequence[ClusterRow], wanted: Iterable[Link]) -> Iterator[str]:
    """What `unicast` leaves to the other side's administrator, a sentence each."""
    by_context = {cluster.context: cluster for cluster in clusters}
    wanted = set(wanted)
    for link in sorted(wanted):
        reader, peer = by_context[link.reader], by_context[link.peer]
        if Link(link.peer, link.reader) not in wanted and reader.name not in peer.peers:
            yield (
                f"{peer.name} does not read {reader.name} yet, nor let it read, nor answer its "
                f"pods: clustermesh connect --context {peer.context} "
                f"--destination-context {reader.context} --connection-mode unicast"
            )


def peer_file(peer: ClusterRow) -> str:
    """The etcd client file that connects to `peer`; only for one that has an endpoint."""
    file = {
        "endpoints": [f"https://{endpoint}" for endpoint in peer.endpoints],
        "server-name": server_name(peer) or "",
        "trusted-ca-file": f"{REMOTE}/ca.crt",
        "cert-file": f"{REMOTE}/tls.crt",
        "key-file": f"{REMOTE}/tls.key",
    }
    return yaml.safe_dump({k: v for k, v in file.items() if v}, sort_keys=False)


def server_name(peer: ClusterRow) -> str | None:
    """
    The name to expect in the certificate of `peer`; empty where that is the endpoints' own.

    None if the certificate has none that could be expected.
    """
    addresses = [parse_address(endpoint) for endpoint in peer.endpoints]
    hosts = {address.host for address in addresses if isinstance(address, TcpAddress)}
    names = set(peer.server_names)
    if all(host in names or _wildcard(host) in names for host in hosts):
        return ""
    name = f"{peer.name}.{SERVER_DOMAIN}"
    return name if name in names or _wildcard(name) in names else None


def bundle_pem(authorities: Iterable[Authority]) -> str:
    """CAs as a file has them."""
    return "".join(f"{authority.pem.strip()}\n" for authority in authorities)


def bundle_hash(pem: str) -> str:
    """What tells an etcd's bundle from another: it is read at start only."""
    return hashlib.sha256(pem.encode()).hexdigest()[:16]


def peers_of(files: Mapping[str, str]) -> dict[ClusterName, str]:
    """The clusters' files of a Secret: certificates have a dot in their names."""
    return {ClusterName(name): text for name, text in files.items() if "." not in name}


def _wildcard(name: str) -> str:
    return f"*.{name.partition('.')[2]}"


def _trust(cluster: ClusterRow, met: Iterable[Authority]) -> Trust | None:
    known = {authority.fingerprint: authority for authority in cluster.trusted}
    added = {ca.fingerprint: ca for ca in met if ca.fingerprint not in known}
    is_read = cluster.bundle_in_use or len(known) == 1
    if not added and is_read:
        return None
    own = {cluster.authority.fingerprint: cluster.authority}
    return Trust(cluster.context, tuple({**own, **known, **added}.values()), tuple(added.values()))
