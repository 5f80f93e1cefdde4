"""
The way to a peer's etcd, step by step: the file, and for each endpoint the name, TCP, TLS, the
login, what the cluster says of itself, whether it is complete, and its clock.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping, MutableMapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from certs.ca import common_name, issuer_name
from clustermesh import kinds
from clustermesh.errors import BadRowError, UserError
from clustermesh.etcd import DeniedError, Endpoint, Etcd, EtcdConfig, EtcdError, read_config
from clustermesh.etcd.probe import probe_endpoint
from clustermesh.kinds import Kind
from clustermesh.model import ClusterName

_TIMEOUT: Final = 3.0  # seconds

_CLOCKS_DIFFER: Final = 5.0
"""Seconds that a heartbeat may be ahead of us: what clocks that are kept in time never are."""

_KINDS: Final[Mapping[str, Kind[Any, Any]]] = {
    "nodes": kinds.NODES,
    "services": kinds.SERVICES,
    "identities": kinds.IDENTITIES,
    "endpoints": kinds.ENDPOINTS,
}


class Step(NamedTuple):
    """How far one comes."""

    name: str
    is_good: bool | None  # None: only to be told
    text: str
    details: Sequence[str] = ()


async def steps(
    cluster: ClusterName, path: Path, ids: MutableMapping[int, ClusterName]
) -> AsyncIterator[Step]:
    """
    Go the way that the file at `path` says, and stop where an agent could not go on.

    Args:
        ids: who has which cluster id; `cluster` is entered.
    """
    try:
        config = read_config(path)
    except UserError as error:
        yield Step("file", is_good=False, text=str(error))
        return
    yield Step("file", is_good=True, text=f"{len(config.endpoints)} endpoints")
    for endpoint in config.endpoints:
        yield Step("endpoint", is_good=None, text=str(endpoint))
        one = EtcdConfig((endpoint,), config.ca, config.cert, config.key)
        is_open = True
        for step in await asyncio.to_thread(lambda: [*_transport(one)]):  # noqa: B023 - awaited here
            is_open &= step.is_good is not False
            yield step
        if is_open:
            async for step in _etcd(cluster, one, ids):
                yield step


def _transport(config: EtcdConfig) -> Iterator[Step]:
    """Name, TCP, TLS. Blocks."""
    (endpoint,) = config.endpoints
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as error:
        cause = error.strerror or str(error)
        yield Step("name", is_good=False, text=f"{endpoint.host} does not resolve: {cause}")
        return
    addresses = dict.fromkeys(str(address[0]) for *_, address in found)
    yield Step("name", is_good=True, text=", ".join(addresses))
    start = time.monotonic()
    try:
        socket.create_connection((endpoint.host, endpoint.port), _TIMEOUT).close()
    except OSError as error:
        cause = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        yield Step("tcp", is_good=False, text=f"{endpoint.authority}: {cause}")
        return
    yield Step("tcp", is_good=True, text=f"{(time.monotonic() - start) * 1000:.1f} ms")
    if endpoint.tls:
        yield _tls(config, endpoint)


def _tls(config: EtcdConfig, endpoint: Endpoint) -> Step:
    cause = probe_endpoint(config, endpoint)
    if cause is None:
        return Step("tls", is_good=True, text=f"as {endpoint.certified_name}")
    return Step("tls", is_good=False, text=cause, details=[*_certificates(config, endpoint)])


def _certificates(config: EtcdConfig, endpoint: Endpoint) -> Iterator[str]:
    """Theirs, ours, and whom we trust."""
    try:
        yield from _described(
            "theirs",
            ssl.get_server_certificate((endpoint.host, endpoint.port), timeout=_TIMEOUT).encode(),
        )
    except OSError as error:
        yield f"theirs: cannot be read: {error}"
    for what, file in (("ours", config.cert), ("trusted", config.ca)):
        try:
            yield from _described(what, file.read_bytes() if file else b"")
        except OSError as error:
            yield f"{what}: {file}: {error.strerror}"


def _described(what: str, pem: bytes) -> Iterator[str]:
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        yield f"{what}: no certificate: {error}"
        return
    for certificate in found:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        yield f"{what}: {common_name(certificate)}, by {issuer_name(certificate)}"
        if names := _names(certificate):
            yield f"  for {', '.join(names)}"
        yield f"  valid {begin:%F %R} to {end:%F %R} UTC"
        yield f"  SHA-256 {certificate.fingerprint(hashes.SHA256()).hex()}"


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return [*names.get_values_for_type(x509.DNSName), *addresses]


async def _etcd(
    cluster: ClusterName, config: EtcdConfig, ids: MutableMapping[int, ClusterName]
) -> AsyncIterator[Step]:
    """Login, cluster-config, canaries, clock, version."""
    async with Etcd(config) as etcd:
        try:
            introduction = await etcd.get(kinds.cluster_config_key(cluster).encode())
        except DeniedError as error:
            hint = "is it connected with us? its apiserver makes the user"
            yield Step("login", is_good=False, text=str(error), details=[hint])
            return
        except EtcdError as error:
            yield Step("login", is_good=False, text=str(error))
            return
        yield Step("login", is_good=True, text=_user(config))
        step, is_cached = _introduced(cluster, introduction, ids)
        yield step
        try:
            yield await _canaries(etcd, cluster, cached=is_cached)
            yield _clock(await etcd.get(kinds.HEARTBEAT.encode()))
            yield Step("etcd", is_good=None, text=f"version {(await etcd.status()).version}")
        except EtcdError as error:
            yield Step("read", is_good=False, text=str(error))


def _user(config: EtcdConfig) -> str:
    if config.cert is None:
        return "as nobody: there is no TLS"
    return f"as {common_name(x509.load_pem_x509_certificate(config.cert.read_bytes()))}"


def _introduced(
    cluster: ClusterName, value: bytes | None, ids: MutableMapping[int, ClusterName]
) -> tuple[Step, bool]:
    """What the cluster says of itself, and whether it is a copy that another one keeps."""
    name = "cluster-config"
    if value is None:
        text = f"there is none of {cluster}: has its apiserver started? is it that cluster?"
        return Step(name, is_good=False, text=text), False
    try:
        config = kinds.decode_cluster_config(value)
    except BadRowError as error:
        return Step(name, is_good=False, text=str(error)), False
    holder = ids.setdefault(config.id, cluster)
    text = f"id {config.id}, {config.max_connected_clusters} clusters at most"
    if holder != cluster:
        text = f"{text}; but {holder} has that id"
    return Step(name, is_good=holder == cluster, text=text), config.cached


async def _canaries(etcd: Etcd, cluster: ClusterName, *, cached: bool) -> Step:
    """What an agent waits for before it begins to read."""
    missing = [
        name
        for name, kind in _KINDS.items()
        if await etcd.get(kind.canary(cluster, cached=cached).encode()) is None
    ]
    if missing:
        text = f"not complete yet: {', '.join(missing)}"
        return Step("canaries", is_good=False, text=text)
    return Step("canaries", is_good=True, text=f"complete: {', '.join(_KINDS)}")


def _clock(beat: bytes | None) -> Step:
    if beat is None:
        return Step("heartbeat", is_good=False, text="there is none: is its apiserver running?")
    try:
        age = (datetime.now(UTC) - datetime.fromisoformat(beat.decode())).total_seconds()
    except (ValueError, TypeError):
        return Step("heartbeat", is_good=False, text=f"{beat[:40]!r} is no time")
    if age < -_CLOCKS_DIFFER:
        return Step("heartbeat", is_good=False, text=f"its clock is {-age:.0f} s ahead of ours")
    if age > kinds.HEARTBEAT_LOST:
        text = f"{age:.0f} s ago: its apiserver is not running, or its clock is behind ours"
        return Step("heartbeat", is_good=False, text=text)
    return Step("heartbeat", is_good=True, text=f"{max(age, 0):.0f} s ago")
