"""Which certificates are due for renewal, and why: pure functions of certificates and `now`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from .ca import common_name, is_issued_by, issuer_name, rejection
from .leaf import Profile, profile_of


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate that is on disk, and whether the key beside it is its own."""

    certificate: x509.Certificate
    key_matches: bool = True


@dataclass(frozen=True, slots=True)
class Renewal:
    """A certificate, until when it is good, and why it is due; not due without a reason."""

    name: str
    subject: str
    not_after: datetime | None  # None: there is no certificate
    reason: str

    @property
    def due(self) -> bool:
        """Whether it should be issued again now."""
        return bool(self.reason)


def renewals(
    wanted: Sequence[Profile],
    held: Mapping[str, Held],
    bundle: Sequence[x509.Certificate],
    now: datetime,
    *,
    current: x509.Certificate | None = None,
) -> tuple[Renewal, ...]:
    """
    A row for each of `wanted`, in their order.

    Args:
        held: what there is, by the name of its profile.
        bundle: the trusted CAs.
        current: the one of them that signs. Without it a certificate of any CA of the bundle is
            good; with it, those of the others are due.
    """
    rows = []
    for profile in wanted:
        found = held.get(profile.name)
        if found is None:
            rows.append(Renewal(profile.name, profile.subject, None, "missing"))
            continue
        certificate = found.certificate
        reason = (
            ("" if found.key_matches else "its key is not the key of the certificate")
            or rejection(certificate, bundle, now)
            or _superseded(certificate, current)
            or _difference(profile, certificate)
            or _age(certificate, now)
        )
        rows.append(
            Renewal(profile.name, common_name(certificate), certificate.not_valid_after_utc, reason)
        )
    return tuple(rows)


def authority_renewals(bundle: Sequence[x509.Certificate], now: datetime) -> tuple[Renewal, ...]:
    """
    A row for each CA of a bundle.

    A CA is due by age only, and nothing replaces it by itself: that takes every cluster of the
    mesh, in steps.
    """
    return tuple(
        Renewal("ca", common_name(ca), ca.not_valid_after_utc, _age(ca, now)) for ca in bundle
    )


def _superseded(certificate: x509.Certificate, current: x509.Certificate | None) -> str:
    if current is None or is_issued_by(certificate, current):
        return ""
    return f"is signed by {issuer_name(certificate)!r}, no longer the current CA"


def _difference(profile: Profile, certificate: x509.Certificate) -> str:
    """What `certificate` lacks. To say more than the profile asks for is no reason."""
    has = profile_of(profile.name, certificate)
    if has.subject != profile.subject:
        return f"is for {has.subject!r}, not for {profile.subject!r}"
    if missing := sorted(profile.names - has.names):
        return f"lacks the names {', '.join(missing)}"
    if profile.usages - has.usages:
        return "lacks a key usage"
    return ""


def _age(certificate: x509.Certificate, now: datetime) -> str:
    """A third of the lifetime is left for somebody to notice that renewal fails."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        return f"has expired on {end:%Y-%m-%d %H:%M} UTC"
    return "is past two thirds of its lifetime" if now - begin > (end - begin) * 2 / 3 else ""
