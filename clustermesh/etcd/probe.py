"""
Find out why an etcd cannot be reached, and say it in a sentence.

gRPC reports a refused connection, a wrong name and a missing client certificate all as
UNAVAILABLE. So after a failure the same handshake is done once more, with the standard library.
Reading certificates takes one that costs a daemon 9 MB: it is imported only when there is a cause
to find.
"""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from .config import Endpoint, EtcdConfig
from .credentials import load
from .errors import UnreachableError

if TYPE_CHECKING:
    from cryptography import x509

_TIMEOUT: Final = 3.0  # seconds for each of connecting, the handshake and the first answer

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""RFC 9113, 3.4: how an HTTP/2 client begins, with empty settings. The server answers with its own,
or, in TLS 1.3 only now, with the alert that it does not like our certificate."""

# X509_V_ERR_*, of <openssl/x509_vfy.h>.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_WRONG_NAME: Final = frozenset({62, 64})  # a host name, an IP address


def probe(config: EtcdConfig) -> str | None:
    """
    Why none of the endpoints can be talked to, or None if one can. Blocks for seconds.

    The sentence names each endpoint and its cause: the name does not resolve, refused, timed out,
    the server's certificate has expired (when), has other names (which) or an unknown CA, ours is
    refused.
    """
    causes = []
    for endpoint in config.endpoints:
        cause = probe_endpoint(config, endpoint)
        if cause is None:
            return None
        causes.append(f"{endpoint}: {cause}")
    return "; ".join(causes)


def probe_endpoint(config: EtcdConfig, endpoint: Endpoint) -> str | None:
    """Do the same for one endpoint, which the sentence does not name."""
    try:
        with socket.create_connection((endpoint.host, endpoint.port), _TIMEOUT) as tcp:
            return _probe_tls(config, endpoint, tcp) if endpoint.tls else None
    except socket.gaierror:
        return f"the name {endpoint.host} does not resolve"
    except ConnectionRefusedError:
        return "connection refused: nothing listens there"
    except TimeoutError:
        return f"no answer within {_TIMEOUT:g} s"
    except UnreachableError as error:  # our own certificate files
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:  # what is no host name, or a certificate that cannot be read
        return str(error)


def _probe_tls(config: EtcdConfig, endpoint: Endpoint, tcp: socket.socket) -> str | None:
    load(config)
    try:
        cause = _probe_handshake(config, endpoint, tcp)
    except OSError:
        if expired := _own_expired(config):
            return expired
        raise
    return cause and (_own_expired(config) or cause)


def _own_expired(config: EtcdConfig) -> str | None:
    """What explains any other failure, if it is so."""
    from cryptography import x509  # noqa: PLC0415

    ours = x509.load_pem_x509_certificate(load(config).cert)
    if ours.not_valid_after_utc < datetime.now(UTC):
        return f"our certificate {config.cert} {_expired(ours)}"
    return None


def _probe_handshake(config: EtcdConfig, endpoint: Endpoint, tcp: socket.socket) -> str | None:
    context = _context(config)
    context.load_verify_locations(config.ca)
    try:
        with context.wrap_socket(tcp, server_hostname=endpoint.certified_name) as tls:
            return _probe_answer(config, tls)
    except ssl.SSLCertVerificationError as error:
        theirs = _server_certificate(config, endpoint)
        if error.verify_code in _WRONG_NAME:
            names = ", ".join(_names(theirs)) or "no names"
            return f"the server's certificate is not for {endpoint.certified_name}, but for {names}"
        if error.verify_code == _EXPIRED:
            whose = theirs if theirs.not_valid_after_utc < datetime.now(UTC) else None
            return f"the server's certificate {_expired(whose)}"
        if error.verify_code == _NOT_YET_VALID:
            begin = theirs.not_valid_before_utc
            return f"the server's certificate is not valid before {begin:%F %T} UTC"
        issuer = theirs.issuer.rfc4514_string()
        return f"the server's certificate is by a CA ({issuer}) that {config.ca} does not have"
    except ssl.SSLError as error:
        return f"TLS failed: {error.reason or error}"


def _probe_answer(config: EtcdConfig, tls: ssl.SSLSocket) -> str | None:
    try:
        tls.sendall(_PREFACE)
        if tls.recv(9):
            return None
    except ssl.SSLError as error:
        return f"the server refuses our certificate {config.cert}: {error.reason or error}"
    return "the server closed the connection"


def _context(config: EtcdConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(str(config.cert), str(config.key), password="")
    return context


def _server_certificate(config: EtcdConfig, endpoint: Endpoint) -> x509.Certificate:
    """Fetch it without verification: only to say what is wrong with it."""
    from cryptography import x509  # noqa: PLC0415

    context = _context(config)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((endpoint.host, endpoint.port), _TIMEOUT) as tcp,
        context.wrap_socket(tcp, server_hostname=endpoint.certified_name) as tls,
    ):
        der = tls.getpeercert(binary_form=True)
        assert der is not None, "a TLS server always has a certificate"
        return x509.load_der_x509_certificate(der)


def _names(certificate: x509.Certificate) -> list[str]:
    from cryptography import x509  # noqa: PLC0415

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = (str(ip) for ip in names.get_values_for_type(x509.IPAddress))
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def _expired(certificate: x509.Certificate | None) -> str:
    if certificate is None:
        return "is by a CA that has expired"
    return f"expired at {certificate.not_valid_after_utc:%F %T} UTC"
