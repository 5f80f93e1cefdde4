from __future__ import annotations

import ssl
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.x509.oid import NameOID

from .config import EtcdConfig
from .errors import UnreachableError


class Credentials(msgspec.Struct, frozen=True):
    """The bytes of the certificate files at one moment, checked to belong together."""

    ca: bytes
    cert: bytes
    key: bytes
    user: str  # the common name of the certificate, which is the etcd user


def fingerprint(config: EtcdConfig) -> tuple[object, ...]:
    """Changes whenever a certificate file changes, appears or goes, also behind a symlink."""
    return tuple(_fingerprint(path) for path in config.files)


def load(config: EtcdConfig) -> Credentials:
    """
    Read the certificate files.

    Raises:
        UnreachableError: a file is missing or no PEM, or the key is not the certificate's, as it
            may be for a moment while the files are being replaced. It names the file.
    """
    ca, cert, key = (_read(path) for path in (config.ca, config.cert, config.key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=ca.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise UnreachableError(f"{config.ca}: holds no CA certificate") from error
    try:
        user = _common_name(cert)
        # Without a password OpenSSL would ask for that of an encrypted key on the terminal.
        context.load_cert_chain(str(config.cert), str(config.key), password="")
    except ssl.SSLError as error:
        message = f"{config.key}: is no key for the certificate in {config.cert}"
        raise UnreachableError(message) from error
    except ValueError as error:
        raise UnreachableError(f"{config.cert}: holds no certificate") from error
    return Credentials(ca, cert, key, user)


def _read(path: Path | None) -> bytes:
    assert path is not None, "the configuration was checked: https comes with all three"
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreachableError(f"{path}: cannot be read: {error.strerror}") from error


def _fingerprint(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return (stat.st_ino, stat.st_mtime_ns, stat.st_size)


def _common_name(pem: bytes) -> str:
    names = x509.load_pem_x509_certificate(pem).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
