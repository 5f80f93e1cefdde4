from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from certs import leaf
from certs.ca import common_name, create_authority
from certs.leaf import Profile, issue
from certs.rotation import Held, authority_renewals, renewals

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
OLD, NEW, STRANGER = (create_authority(now=NOW, lifetime=3650 * DAY) for _ in range(3))
BOTH = (OLD.certificate, NEW.certificate)
REMOTE = leaf.remote()
SERVER = leaf.server("mesh-system")


def reason(
    profile: Profile,
    held: Held | None,
    now: datetime,
    *,
    bundle: tuple[x509.Certificate, ...] = BOTH,
    current: x509.Certificate | None = OLD.certificate,
) -> str:
    there = {profile.name: held} if held else {}
    [row] = renewals([profile], there, bundle, now, current=current)
    assert row.due == bool(row.reason)
    assert row.not_after == (held.certificate.not_valid_after_utc if held else None)
    return row.reason


GOOD = Held(issue(REMOTE, OLD, now=NOW, lifetime=90 * DAY).certificate)
SERVER_ONLY = Profile("server", leaf.SERVER_NAME, SERVER.names, leaf.CLIENT)


@pytest.mark.parametrize(
    ("profile", "held", "day", "expected"),
    [
        (REMOTE, GOOD, 0, ""),
        (REMOTE, GOOD, 59, ""),
        (REMOTE, GOOD, 61, "is past two thirds of its lifetime"),
        (REMOTE, GOOD, 91, "has expired on 2030-04-01 00:00 UTC"),
        (REMOTE, GOOD, -1, "is not valid before 2029-12-31 23:00 UTC"),
        (REMOTE, None, 0, "missing"),
        (REMOTE, Held(GOOD.certificate, key_matches=False), 0, "its key is not the key of the"),
        (REMOTE, Held(issue(REMOTE, STRANGER, now=NOW).certificate), 0, "which is not trusted"),
        (REMOTE, Held(issue(REMOTE, NEW, now=NOW).certificate), 0, "no longer the current CA"),
        (leaf.remote("west"), GOOD, 0, "is for 'remote', not for 'remote-west'"),
        (
            leaf.server("mesh-system", ["192.0.2.7", "etcd.example.org"]),
            Held(issue(SERVER, OLD, now=NOW).certificate),
            0,
            "lacks the names 192.0.2.7, etcd.example.org",
        ),
        (SERVER, Held(issue(SERVER_ONLY, OLD, now=NOW).certificate), 0, "lacks a key usage"),
        (
            SERVER,
            Held(issue(leaf.server("mesh-system", ["x.example.org"]), OLD, now=NOW).certificate),
            0,
            "",
        ),
    ],
)
def test_what_is_due_and_why(profile: Profile, held: Held | None, day: int, expected: str) -> None:
    found = reason(profile, held, NOW + day * DAY)
    assert expected in found
    assert bool(expected) == bool(found)


def test_any_ca_of_the_bundle_is_good_where_it_is_not_known_which_one_signs() -> None:
    for authority in (OLD, NEW):
        held = Held(issue(REMOTE, authority, now=NOW).certificate)
        assert reason(REMOTE, held, NOW, current=None) == ""


def test_a_leaf_of_a_ca_that_has_expired_is_due_and_says_so() -> None:
    # A foreign tool may issue what outlives its CA: here a CA of the same key, but cut short.
    long = create_authority(now=NOW, lifetime=100 * DAY)
    held = Held(issue(REMOTE, long, now=NOW, lifetime=90 * DAY).certificate)
    short = (
        x509.CertificateBuilder()
        .subject_name(long.certificate.subject)
        .issuer_name(long.certificate.subject)
        .public_key(long.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .sign(long.key, hashes.SHA256())
    )
    name = common_name(long.certificate)
    found = reason(REMOTE, held, NOW + 2 * DAY, bundle=(short,), current=short)
    assert found == f"is signed by {name!r}, which has expired"


def test_a_ca_is_due_by_its_age_too() -> None:
    rows = authority_renewals(BOTH, NOW + 2600 * DAY)
    assert [(r.name, r.subject, r.reason) for r in rows] == [
        ("ca", common_name(ca), "is past two thirds of its lifetime") for ca in BOTH
    ]
    assert not any(row.due for row in authority_renewals(BOTH, NOW))


@given(lifetime=st.integers(1, 3000), after=st.integers(0, 9000))
def test_what_is_due_once_stays_due_until_it_is_renewed(lifetime: int, after: int) -> None:
    held = Held(issue(REMOTE, OLD, now=NOW, lifetime=lifetime * DAY).certificate)
    today, later = (reason(REMOTE, held, NOW + days * DAY) for days in (after, after + 1))
    assert not today or later
    assert not reason(REMOTE, held, NOW)
