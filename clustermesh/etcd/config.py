from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from clustermesh.errors import UserError

DEFAULT_PORT: Final = 2379


class Endpoint(msgspec.Struct, frozen=True):
    """Where an etcd listens; printed as a URL."""

    host: str  # a name or an address, IPv6 without brackets
    port: int
    tls: bool
    server_name: str = ""  # in the server's certificate, where it is not the host

    @property
    def certified_name(self) -> str:
        """The name or address that the server's certificate must have."""
        return self.server_name or self.host

    @property
    def authority(self) -> str:
        """`host:port`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"


class EtcdConfig(msgspec.Struct, frozen=True):
    """How to reach an etcd: any one of the endpoints, and the files that prove who is who."""

    endpoints: tuple[Endpoint, ...]
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The certificate files that there are."""
        return tuple(path for path in (self.ca, self.cert, self.key) if path is not None)


class _File(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    """
    STABLE API: the etcd client configuration file, as far as Cilium writes it too.

    `server-name` is ours: nodes' addresses come and go, and are in no certificate.
    """

    endpoints: list[str]
    trusted_ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""


def read_config(path: Path) -> EtcdConfig:
    """
    Read an etcd client YAML. Relative paths in it are relative to the file.

    The certificates themselves are not read here: they may come later, and change.

    Raises:
        UserError: it names the file and the field.
    """
    try:
        file = msgspec.yaml.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:  # a ValidationError is one too
        hint = "known are endpoints, trusted-ca-file, cert-file, key-file, server-name"
        cause = " ".join(str(error).split())  # YAML's messages have several lines
        raise UserError(f"{path}: {cause}", hint=hint) from error
    ca, cert, key = (
        path.parent / name if name else None
        for name in (file.trusted_ca_file, file.cert_file, file.key_file)
    )
    config = make_config(file.endpoints, ca, cert, key, where=f"{path}: endpoints")
    if not file.server_name:
        return config
    return replace(
        config, endpoints=tuple(replace(e, server_name=file.server_name) for e in config.endpoints)
    )


def make_config(
    endpoints: Sequence[str], ca: Path | None, cert: Path | None, key: Path | None, *, where: str
) -> EtcdConfig:
    """
    Check what a file or the flags say.

    Args:
        endpoints: URLs, or `host:port` for https.
        where: what the endpoints are called where the user wrote them, for the error.

    Raises:
        UserError: no endpoint, a bad URL, https without certificates, or http to another machine.
    """
    if not endpoints:
        raise UserError(f"{where}: there is none", hint="name one, such as https://127.0.0.1:2379")
    parsed = tuple(_parse_endpoint(url, where) for url in endpoints)
    for endpoint in parsed:
        if endpoint.tls and not (ca and cert and key):
            raise UserError(
                f"{where}: {endpoint} needs certificates",
                hint="name all of CA, certificate and key",
            )
        if not endpoint.tls and not _is_loopback(endpoint.host):
            raise UserError(
                f"{where}: {endpoint} is plain text to another machine",
                hint="use https and certificates; http is for loopback only",
            )
    return EtcdConfig(parsed, ca, cert, key)


def _parse_endpoint(url: str, where: str) -> Endpoint:
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        port = parts.port or DEFAULT_PORT
    except ValueError as error:
        raise UserError(f"{where}: {url!r}: {error}") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
        raise UserError(f"{where}: {url!r} is no URL of an etcd", hint="write https://host:port")
    return Endpoint(parts.hostname, port, parts.scheme == "https")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
