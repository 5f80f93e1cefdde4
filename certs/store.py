"""
A directory of certificates: one for each cluster, and one for the CA that clusters share.

    ca.crt      the CAs that are trusted, one or several
    ca.key      the key of the one that signs; absent where the CA is kept elsewhere
    NAME.crt    NAME.key, for server, admin, local, remote, root and remote-PEER
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from .ca import Authority, PrivateKey, find_authority, rejection
from .errors import CertificateError
from .leaf import Pair
from .rotation import Held

_LEAF: Final = re.compile("server|root|admin|local|remote(-.+)?")
_TEMPORARY: Final = ".tmp"
_CERTIFICATE_MODE: Final = 0o644
_KEY_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Store:
    """Reads and writes `directory`, which need not exist before something is written."""

    directory: Path

    def path(self, name: str, suffix: str) -> Path:
        """Where a certificate (`crt`) or key (`key`) is."""
        return self.directory / f"{name}.{suffix}"

    def has_authority(self) -> bool:
        """Whether a CA is here that can sign."""
        return self.path("ca", "key").exists()

    def names(self) -> tuple[str, ...]:
        """The leaves that have a certificate, sorted. Files that are not ours are not counted."""
        found = (path.stem for path in self.directory.glob("*.crt"))
        return tuple(sorted(name for name in found if _LEAF.fullmatch(name)))

    def bundle(self) -> tuple[x509.Certificate, ...]:
        """
        The CAs that are trusted.

        Raises:
            CertificateError: unreadable, or one of them is no CA.
        """
        path = self.path("ca", "crt")
        bundle = _read_certificates(path)
        for certificate in bundle:
            if not _is_ca(certificate):
                who = certificate.subject.rfc4514_string()
                raise CertificateError(f"{path}: {who} is not the certificate of a CA")
        return bundle

    def authority(self) -> Authority:
        """
        The CA that signs.

        Raises:
            CertificateError: unreadable, or the key belongs to no CA in `ca.crt`.
        """
        bundle, path = self.bundle(), self.path("ca", "key")
        try:
            return find_authority(bundle, _read_key(path))
        except CertificateError as error:
            where = "" if str(error).startswith(str(path)) else f"{path}: "
            raise CertificateError(f"{where}{error}", hint=error.hint) from error

    def held(self, name: str) -> Held | None:
        """
        A leaf as it is, good or not, to judge whether it is due; None if there is none.

        Raises:
            CertificateError: a file cannot be read or parsed.
        """
        if not self.path(name, "crt").exists():
            return None
        certificate = _read_certificates(self.path(name, "crt"))[0]
        path = self.path(name, "key")
        matches = path.exists() and _read_key(path).public_key() == certificate.public_key()
        return Held(certificate, matches)

    def load(self, name: str, *, now: datetime) -> Pair:
        """
        A leaf that is good to use now.

        Raises:
            CertificateError: naming the file: unreadable, malformed, a key that others can read
                or that is another's, expired, not valid yet, or signed by none of the CAs here.
        """
        path = self.path(name, "crt")
        certificate = _read_certificates(path)[0]
        key = _read_key(self.path(name, "key"))
        if key.public_key() != certificate.public_key():
            raise CertificateError(
                f"{self.path(name, 'key')} is not the key of {path.name}", hint="renew it"
            )
        if reason := rejection(certificate, self.bundle(), now):
            raise CertificateError(f"{path} {reason}", hint="renew it")
        return Pair(certificate, key)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """
        Keep other writers out, and clear away what a crashed one has left.

        Raises:
            CertificateError: the directory cannot be made or opened.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                handle = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, handle)  # lets go of the lock, too
                fcntl.flock(handle, fcntl.LOCK_EX)
                for leftover in self.directory.glob(f".*{_TEMPORARY}"):
                    leftover.unlink()
            except OSError as error:
                raise CertificateError(f"{self.directory}: {error.strerror}") from error
            yield

    def write_bundle(self, bundle: tuple[x509.Certificate, ...]) -> None:
        """Replace `ca.crt`."""
        write_atomically({self.path("ca", "crt"): (_pem(*bundle), _CERTIFICATE_MODE)})

    def write_authority(self, authority: Authority) -> None:
        """Replace `ca.crt` and `ca.key`."""
        self._write_pair("ca", authority.key, *authority.bundle)

    def write(self, name: str, pair: Pair) -> None:
        """
        Replace a leaf.

        Two files cannot be renamed at once: a crash (or a reader) between the two renames finds
        the new key beside the old certificate. It is seen as due then, and healed by a renewal.
        """
        self._write_pair(name, pair.key, pair.certificate)

    def _write_pair(self, name: str, key: PrivateKey, *certificates: x509.Certificate) -> None:
        pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomically(
            {
                self.path(name, "key"): (pkcs8, _KEY_MODE),
                self.path(name, "crt"): (_pem(*certificates), _CERTIFICATE_MODE),
            }
        )


def write_atomically(files: Mapping[Path, tuple[bytes, int]]) -> None:
    """
    Replace each file, in order, by its content and mode: a reader sees the old or the new one.

    Everything is on disk before the first rename, so a full disk changes nothing.

    Raises:
        CertificateError: naming the file that could not be written.
    """
    staged: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, (data, mode) in files.items():
            staged.append((_stage(path, data, mode), path))
        for temporary, path in staged:
            temporary.replace(path)
        for directory in {path.parent for path in files}:
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except OSError as error:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
        raise CertificateError(f"{path}: cannot write: {error.strerror}") from error


def _stage(path: Path, data: bytes, mode: int) -> Path:
    # mkstemp creates with 0600, so a key is nobody else's from its first moment on.
    handle, name = tempfile.mkstemp(_TEMPORARY, f".{path.name}.", path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except OSError:
        Path(name).unlink()
        raise
    return Path(name)


def _read_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    try:
        certificates = tuple(x509.load_pem_x509_certificates(path.read_bytes()))
        for certificate in certificates:
            _ = certificate.extensions  # parsed when asked for: have a broken one named here
    except OSError as error:
        raise CertificateError(f"{path}: cannot read: {error.strerror}") from error
    except ValueError as error:
        raise CertificateError(f"{path}: not a certificate in PEM") from error
    return certificates


def _read_key(path: Path) -> PrivateKey:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read()
    except OSError as error:
        raise CertificateError(f"{path}: cannot read: {error.strerror}") from error
    if mode & 0o077:
        raise CertificateError(
            f"{path}: others than its owner can read this key (mode {mode:04o})",
            hint=f"chmod 600 {path}, and think about who may have read it",
        )
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: has a passphrase
        raise CertificateError(f"{path}: not a private key in PEM without passphrase") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise CertificateError(f"{path}: neither an EC nor an RSA key")
    return key


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return False
    return constraints.value.ca


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)
