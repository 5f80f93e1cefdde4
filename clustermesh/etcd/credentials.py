from __future__ import annotations

import ssl
from pathlib import Path

import msgspec

from .config import EtcdConfig
from .errors import UnreachableError


class Credentials(msgspec.Struct, frozen=True):
    """The bytes of the certificate files at one moment, checked to belong together."""

    ca: bytes
    cert: bytes
    key: bytes

    @property
    def user(self) -> str:
        """
        The common name of the certificate, which is the etcd user.

        Only errors name it. So the library that reads it, 9 MB, is imported only then.
        """
        from cryptography import x509  # noqa: PLC0415
        from cryptography.x509.oid import NameOID  # noqa: PLC0415

        subject = x509.load_pem_x509_certificate(self.cert).subject
        names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value) if names else ""


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
    if not _holds_certificate(ca):
        raise UnreachableError(f"{config.ca}: holds no CA certificate")
    if not _holds_certificate(cert):
        raise UnreachableError(f"{config.cert}: holds no certificate")
    try:
        # Without a password OpenSSL would ask for that of an encrypted key on the terminal.
        _context().load_cert_chain(str(config.cert), str(config.key), password="")
    except ssl.SSLError as error:
        message = f"{config.key}: is no key for the certificate in {config.cert}"
        raise UnreachableError(message) from error
    return Credentials(ca, cert, key)


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


def _holds_certificate(pem: bytes) -> bool:
    try:
        _context().load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError):
        return False
    return True


def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
