from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509 import verification
from hypothesis import given
from hypothesis import strategies as st

from certs import leaf
from certs.ca import (
    common_name,
    common_name_only,
    create_authority,
    find_authority,
    is_issued_by,
    rejection,
)
from certs.cluster import init, init_authority
from certs.errors import CertificateError
from certs.leaf import Pair, Profile, issue, parse_name, profile_of

NOW = datetime(2030, 1, 1, tzinfo=UTC)
CA = create_authority(now=NOW)
DAY = timedelta(days=1)


def verify_client(pair: Pair) -> None:
    policy = verification.PolicyBuilder().store(verification.Store(list(CA.bundle))).time(NOW)
    policy.build_client_verifier().verify(pair.certificate, [])


def verify_server(pair: Pair, name: str) -> None:
    try:
        subject: verification.Subject = x509.IPAddress(ip_address(name))
    except ValueError:
        subject = x509.DNSName(name)
    policy = verification.PolicyBuilder().store(verification.Store(list(CA.bundle))).time(NOW)
    policy.build_server_verifier(subject).verify(pair.certificate, [])


def test_the_cn_of_each_client_certificate_is_its_etcd_user() -> None:
    profiles = [leaf.root(), leaf.admin("east"), leaf.local("east"), leaf.remote()]
    profiles.append(leaf.remote("west"))
    users = {p.name: common_name(issue(p, CA, now=NOW).certificate) for p in profiles}
    assert users == {
        "root": "root",
        "admin": "admin-east",
        "local": "local-east",
        "remote": "remote",
        "remote-west": "remote-west",
    }


@pytest.mark.parametrize(
    "name",
    [
        "clustermesh-apiserver.cilium.io",
        "west.mesh.cilium.io",
        "clustermesh-apiserver.mesh-system.svc",
        "127.0.0.1",
        "::1",
        "192.0.2.7",
        "etcd.example.org",
    ],
)
def test_the_server_certificate_is_good_for_every_name_that_peers_dial(name: str) -> None:
    pair = issue(leaf.server("mesh-system", ["192.0.2.7", "etcd.Example.org"]), CA, now=NOW)
    verify_server(pair, name)


def test_the_server_certificate_is_for_no_other_name() -> None:
    pair = issue(leaf.server("mesh-system"), CA, now=NOW)
    for name in ("etcd.example.org", "192.0.2.7", "a.b.mesh.cilium.io"):
        with pytest.raises(verification.VerificationError):
            verify_server(pair, name)


def test_etcd_may_dial_itself_with_its_server_certificate() -> None:
    verify_client(issue(leaf.server("mesh-system"), CA, now=NOW))


def test_a_client_certificate_cannot_play_the_server() -> None:
    pair = issue(leaf.remote("west"), CA, now=NOW)
    verify_client(pair)
    with pytest.raises(verification.VerificationError):
        verify_server(pair, "remote-west")


def test_a_leaf_cannot_sign_and_the_ca_can_sign_leaves_only() -> None:
    admin = issue(leaf.admin("east"), CA, now=NOW)
    constraints = admin.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert not constraints.value.ca
    own = CA.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (own.value.ca, own.value.path_length, own.critical) == (True, 0, True)


def test_a_node_whose_clock_is_half_an_hour_slow_accepts_a_new_certificate() -> None:
    ca = create_authority(now=NOW)
    slow = NOW - timedelta(minutes=30)
    assert rejection(ca.certificate, ca.bundle, slow) == ""
    assert rejection(issue(leaf.remote(), ca, now=NOW).certificate, ca.bundle, slow) == ""


def test_a_leaf_never_outlives_its_ca() -> None:
    ca = create_authority(now=NOW, lifetime=10 * DAY)
    pair = issue(leaf.remote(), ca, now=NOW, lifetime=timedelta.max)
    assert pair.certificate.not_valid_after_utc == NOW + 10 * DAY


def test_an_expired_ca_signs_nothing() -> None:
    ca = create_authority(now=NOW, lifetime=10 * DAY)
    with pytest.raises(CertificateError, match="to 2030-01-11: it cannot sign now"):
        issue(leaf.remote(), ca, now=NOW + 11 * DAY)


def test_a_lifetime_of_nothing_is_refused() -> None:
    with pytest.raises(CertificateError, match="a lifetime of 0:00:00 is none"):
        issue(leaf.remote(), CA, now=NOW, lifetime=timedelta())


def test_two_cas_are_told_apart_by_name_and_by_signature() -> None:
    other = create_authority(now=NOW)
    certificate = issue(leaf.remote(), CA, now=NOW).certificate
    assert common_name(other.certificate) != common_name(CA.certificate)
    assert is_issued_by(certificate, CA.certificate)
    assert not is_issued_by(certificate, other.certificate)


def test_of_two_trusted_cas_the_one_whose_key_there_is_signs() -> None:
    old, new = CA, create_authority(now=NOW)
    both = (old.certificate, new.certificate)
    assert find_authority(both, new.key).certificate == new.certificate
    with pytest.raises(CertificateError, match="belongs to none of the CAs"):
        find_authority(both, create_authority(now=NOW).key)


def test_the_rsa_ca_of_a_company_can_sign_too() -> None:
    key = rsa.generate_private_key(65537, 2048)
    name = common_name_only("Example Corporation")
    own = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + 90 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pair = issue(leaf.remote(), find_authority((own,), key), now=NOW)
    assert rejection(pair.certificate, [own], NOW) == ""


def test_every_certificate_has_a_serial_number_and_a_key_of_its_own() -> None:
    pairs = [issue(leaf.remote(), CA, now=NOW) for _ in range(20)]
    assert len({p.certificate.serial_number for p in pairs}) == 20
    assert len({p.key.private_numbers().public_numbers for p in pairs}) == 20


labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
hosts = (
    st.lists(labels, min_size=1, max_size=4)
    .map(".".join)
    .filter(lambda name: not name.rpartition(".")[2].isdigit())
)
names = hosts | hosts.map("*.{}".format) | st.ip_addresses().map(str)


@given(st.lists(names))
def test_what_a_certificate_says_is_what_was_asked_for(wanted: list[str]) -> None:
    profile = leaf.server("mesh-system", wanted)
    assert profile_of("server", issue(profile, CA, now=NOW).certificate) == profile
    assert profile.names >= {parse_name(name) for name in wanted}


@given(st.text(max_size=80))
def test_any_text_is_a_name_that_can_be_issued_or_a_clear_error(text: str) -> None:
    try:
        name = parse_name(text)
    except CertificateError as error:
        assert repr(text) in str(error)  # noqa: PT017 - either outcome is right
    else:
        issue(Profile("server", leaf.SERVER_NAME, frozenset({name}), leaf.SERVER), CA, now=NOW)


@pytest.mark.parametrize("name", ["300.1.1.1", "10.0.0", "fe80::1%eth0", "a_b", "https://a.b", ""])
def test_what_looks_like_an_address_but_is_none_is_refused(name: str) -> None:
    with pytest.raises(CertificateError, match="neither a DNS name nor an IP address"):
        parse_name(name)


@pytest.mark.parametrize("peer", ["../admin", "a/b", "West", "a.b", "x" * 60, "*", "a b", "ü"])
def test_a_peer_whose_name_cannot_be_a_user_is_refused(peer: str) -> None:
    with pytest.raises(CertificateError):
        leaf.remote(peer)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str:
    """The CN that the server saw; one byte crosses, or TLS 1.3 hides that a client was refused."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        seen: list[str] = []

        def serve() -> None:
            raw, _ = listener.accept()
            with raw, contextlib.suppress(ssl.SSLError, ConnectionError):
                raw.settimeout(10)
                with server.wrap_socket(raw, server_side=True) as tls:
                    peer = tls.getpeercert(binary_form=True)
                    assert peer is not None
                    seen.append(common_name(x509.load_der_x509_certificate(peer)))
                    tls.send(b"!")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as raw,
                client.wrap_socket(raw, server_hostname=name) as tls,
            ):
                if tls.recv(1) != b"!":
                    raise ConnectionError("refused by the server")
        finally:
            thread.join(10)
        return seen[0]


def context(directory: Path, name: str, protocol: int) -> ssl.SSLContext:
    made = ssl.SSLContext(protocol)
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_verify_locations(directory / "ca.crt")
    made.load_cert_chain(directory / f"{name}.crt", directory / f"{name}.key")
    return made


Dial = Callable[[str, str, str], str]


@pytest.fixture
def dial(tmp_path: Path) -> Dial:
    """Dials the server of `east` with a client certificate of a directory, by a server name."""
    now = datetime.now(UTC)  # OpenSSL looks at the real clock
    init_authority(tmp_path / "ca", now=now - 2 * DAY)
    for cluster in ("east", "west"):
        init(tmp_path / cluster, cluster, now=now, ca_directory=tmp_path / "ca", remotes=["west"])
    init(tmp_path / "stranger", "stranger", now=now)
    init(tmp_path / "late", "late", now=now - 2 * DAY, ca_directory=tmp_path / "ca", lifetime=DAY)

    def dial(cluster: str, client: str, server_name: str) -> str:
        return handshake(
            context(tmp_path / "east", "server", ssl.PROTOCOL_TLS_SERVER),
            context(tmp_path / cluster, client, ssl.PROTOCOL_TLS_CLIENT),
            server_name,
        )

    return dial


def test_every_user_gets_through_a_real_mutual_tls_handshake(dial: Dial) -> None:
    users = ["root", "admin", "local", "remote", "remote-west"]
    seen = [dial("east", user, "east.mesh.cilium.io") for user in users]
    assert seen == ["root", "admin-east", "local-east", "remote", "remote-west"]


def test_clusters_that_share_a_ca_recognise_each_other_over_tls(dial: Dial) -> None:
    assert dial("west", "local", "127.0.0.1") == "local-west"


def test_a_stranger_does_not_get_through_tls(dial: Dial) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        dial("stranger", "remote", "127.0.0.1")


def test_an_expired_client_does_not_get_through_tls(dial: Dial) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        dial("late", "remote", "127.0.0.1")


def test_a_server_that_is_dialled_by_a_name_that_is_not_its_own_is_refused(dial: Dial) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        dial("east", "remote", "etcd.example.org")
