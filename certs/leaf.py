"""
Leaf certificates: who there is in a mesh, and what each one's certificate says.

The CN of a client certificate *is* the etcd user: etcd knows no passwords here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from .ca import CLOCK_SKEW, Authority, PrivateKey, common_name, common_name_only, key_usage
from .errors import CertificateError

LEAF_LIFETIME: Final = timedelta(days=365)

# STABLE API: the names under which Cilium agents dial a cluster's etcd.
SERVER_NAME: Final = "clustermesh-apiserver.cilium.io"
SERVER_NAMES: Final = (SERVER_NAME, "*.mesh.cilium.io", "127.0.0.1", "::1")

CLIENT: Final = frozenset({ExtendedKeyUsageOID.CLIENT_AUTH})
SERVER: Final = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH})
"""etcd's HTTP gateway dials etcd's own gRPC port and shows the server certificate as its own."""

_LABEL: Final = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_DNS_NAME: Final = re.compile(rf"(\*\.)?({_LABEL}\.)*(?![0-9]+$){_LABEL}")
"""No all-numeric top label: `300.1.1.1` is a mistake, not a name."""
_CN_MAX: Final = 64  # RFC 5280, ub-common-name


@dataclass(frozen=True, slots=True)
class Profile:
    """What a certificate has to say. `name` is its file's name, without the suffix."""

    name: str
    subject: str  # the CN
    names: frozenset[str]  # SANs: DNS names, and IP addresses in their canonical spelling
    usages: frozenset[x509.ObjectIdentifier]

    def __or__(self, other: Profile) -> Profile:
        """The same, with the names and usages of `other` as well."""
        return Profile(
            self.name, self.subject, self.names | other.names, self.usages | other.usages
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: PrivateKey


def server(namespace: str, names: Iterable[str] = ()) -> Profile:
    """
    The etcd of a cluster.

    Args:
        namespace: where the apiserver runs, for its name inside the cluster.
        names: what else peers dial: a load balancer's address, a DNS name, `*.` allowed in front.
    """
    own = (*SERVER_NAMES, f"clustermesh-apiserver.{namespace}.svc")
    return Profile("server", SERVER_NAME, frozenset(map(parse_name, (*own, *names))), SERVER)


def root() -> Profile:
    """Sets up users and roles. Nobody else needs it, and it is root in every etcd of its CA."""
    return _client("root", "root")


def admin(cluster: str) -> Profile:
    """The apiserver of `cluster`, which may read and write everything."""
    return _client("admin", f"admin-{cluster}")


def local(cluster: str) -> Profile:
    """The agents of `cluster` itself."""
    return _client("local", f"local-{cluster}")


def remote(peer: str = "") -> Profile:
    """The cluster `peer`, or without a name any Cilium peer."""
    name = f"remote-{peer}" if peer else "remote"
    return _client(name, name)


def profile_of(name: str, certificate: x509.Certificate) -> Profile:
    """What `certificate` says: its profile, if it is to be issued again as it is."""
    extensions = certificate.extensions
    names: set[str] = set()
    usages: frozenset[x509.ObjectIdentifier] = frozenset()
    for extension in extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            names.update(extension.value.get_values_for_type(x509.DNSName))
            names.update(map(str, extension.value.get_values_for_type(x509.IPAddress)))
        elif isinstance(extension.value, x509.ExtendedKeyUsage):
            usages = frozenset(extension.value)
    return Profile(name, common_name(certificate), frozenset(names), usages)


def issue(
    profile: Profile, authority: Authority, *, now: datetime, lifetime: timedelta = LEAF_LIFETIME
) -> Pair:
    """
    Make a new key and a certificate for it.

    It ends with `lifetime`, or with the CA if that ends sooner: a certificate that outlives its CA
    only looks valid.

    Raises:
        CertificateError: the CA is not valid now, or `lifetime` is not positive.
    """
    ca = authority.certificate
    if not ca.not_valid_before_utc <= now < ca.not_valid_after_utc:
        raise CertificateError(
            f"the CA {common_name(ca)!r} is valid from {ca.not_valid_before_utc:%Y-%m-%d} "
            f"to {ca.not_valid_after_utc:%Y-%m-%d}: it cannot sign now",
            hint="check the clock, or replace the CA",
        )
    check_lifetime(lifetime)
    key = ec.generate_private_key(ec.SECP256R1())
    constraints = x509.BasicConstraints(ca=False, path_length=None)
    alternative_names = x509.SubjectAlternativeName(map(_general_name, sorted(profile.names)))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(common_name_only(profile.subject))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - CLOCK_SKEW, ca.not_valid_before_utc))
        .not_valid_after(now + min(lifetime, ca.not_valid_after_utc - now))
        .add_extension(constraints, critical=True)
        .add_extension(key_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(sorted(profile.usages, key=lambda oid: oid.dotted_string)),
            critical=False,
        )
        .add_extension(alternative_names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_authority_key_id(ca), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return Pair(certificate, key)


def check_lifetime(lifetime: timedelta) -> None:
    """
    Refuse what is no lifetime, before anything is made.

    Raises:
        CertificateError: it is not positive.
    """
    if lifetime <= timedelta():
        raise CertificateError(f"a lifetime of {lifetime} is none", hint="choose one above zero")


def parse_name(name: str) -> str:
    """
    A DNS name in lower case, or an IP address in its canonical spelling.

    Raises:
        CertificateError: it is neither.
    """
    with contextlib.suppress(ValueError):
        if "%" not in name:  # a zone is known to one host only, and no certificate can say it
            return str(ipaddress.ip_address(name))
    lower = name.lower()
    if len(lower) > 253 or not _DNS_NAME.fullmatch(lower):
        raise CertificateError(
            f"{name!r} is neither a DNS name nor an IP address",
            hint="write mesh.example.org, *.example.org, 192.0.2.1 or 2001:db8::1",
        )
    return lower


def _client(name: str, user: str) -> Profile:
    # The SAN repeats the user: verifiers that follow RFC 9525 do not look at a CN at all, and
    # some refuse a certificate without a SAN even from a client.
    if len(user) > _CN_MAX or parse_name(user) != user or "." in user:
        raise CertificateError(
            f"{user!r} cannot be a user", hint=f"use at most {_CN_MAX} of a-z, 0-9 and -"
        )
    return Profile(name, user, frozenset({user}), CLIENT)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _authority_key_id(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    # What the CA calls its key, which need not be the hash that we would compute.
    try:
        found = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        key = ca.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found.value)
