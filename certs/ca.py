"""
The mesh CA: what signs every certificate of the mesh, and what every certificate is held against.

It signs leaves only (path length 0), so there are no intermediates, and trust is a flat set of
CAs: more than one while a CA is replaced, or while two meshes are merged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from .errors import CertificateError

CA_LIFETIME: Final = timedelta(days=3650)

CLOCK_SKEW: Final = timedelta(hours=1)
"""How far a certificate is backdated, so that a node whose clock is slow takes it at once."""

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
"""Ours are P-256. RSA is what a company's own CA may bring."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that can sign, and all the CAs that are trusted beside it (itself among them)."""

    certificate: x509.Certificate
    key: PrivateKey
    bundle: tuple[x509.Certificate, ...]


def create_authority(*, now: datetime, lifetime: timedelta = CA_LIFETIME) -> Authority:
    """
    Make a new self-signed CA.

    Its name ends in a piece of its key's hash, so that an old and a new CA in one bundle are told
    apart by people, and by TLS libraries that look issuers up by name.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = common_name_only(f"clustermesh CA {key_id.digest.hex()[:8]}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(key_id, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key, (certificate,))


def find_authority(bundle: tuple[x509.Certificate, ...], key: PrivateKey) -> Authority:
    """
    The CA of `bundle` that `key` signs for: with several, the key decides which one is current.

    Raises:
        CertificateError: it signs for none of them.
    """
    for certificate in bundle:
        if certificate.public_key() == key.public_key():
            return Authority(certificate, key, bundle)
    names = ", ".join(map(common_name, bundle))
    raise CertificateError(f"the key belongs to none of the CAs ({names})")


def is_issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether `ca` signed `certificate`; says nothing about dates."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError):  # TypeError: a key type that cannot sign
        return False
    return True


def rejection(
    certificate: x509.Certificate, trusted: Iterable[x509.Certificate], now: datetime
) -> str:
    """Why a TLS peer that trusts `trusted` refuses `certificate` at `now`; empty: it does not."""
    if now < certificate.not_valid_before_utc:
        return f"is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    if now > certificate.not_valid_after_utc:
        return f"has expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    signers = [ca for ca in trusted if is_issued_by(certificate, ca)]
    if not signers:
        return f"is signed by {issuer_name(certificate)!r}, which is not trusted here"
    if all(now > ca.not_valid_after_utc for ca in signers):
        return f"is signed by {issuer_name(certificate)!r}, which has expired"
    return ""


def key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    """
    A KeyUsage with only the named bits set.

    No keyEncipherment and no keyAgreement: TLS with EC keys only ever signs with them.
    """
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def common_name_only(name: str) -> x509.Name:
    """A subject that is nothing but a CN: the CN is all that etcd looks at."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def common_name(certificate: x509.Certificate) -> str:
    """The CN of the subject, or the whole subject where a foreign certificate has no CN."""
    return _common_name(certificate.subject)


def issuer_name(certificate: x509.Certificate) -> str:
    """The CN of the issuer, or the whole issuer where it has no CN."""
    return _common_name(certificate.issuer)


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()
