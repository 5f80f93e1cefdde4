from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certs.ca import rejection
from certs.cluster import init, init_authority, renew, show
from certs.errors import CertificateError
from certs.leaf import profile_of
from certs.rotation import Renewal
from certs.store import Store

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
LEAVES = ["admin", "local", "remote", "root", "server"]


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def why(rows: Iterable[Renewal]) -> dict[str, str]:
    return {row.name: row.reason for row in rows}


def server_names(directory: Path) -> frozenset[str]:
    held = Store(directory).held("server")
    assert held is not None
    return profile_of("server", held.certificate).names


def test_init_makes_everything_once_and_then_changes_nothing(tmp_path: Path) -> None:
    first = init(tmp_path, "east", now=NOW, remotes=["west"], server_names=["192.0.2.7"])
    assert list(why(first)) == ["server", "root", "admin", "local", "remote", "remote-west"]
    before = content(tmp_path)
    assert init(tmp_path, "east", now=NOW, remotes=["west"], server_names=["192.0.2.7"]) == ()
    assert init(tmp_path, "east", now=NOW) == ()
    assert content(tmp_path) == before


def test_a_name_added_later_keeps_those_that_were_there(tmp_path: Path) -> None:
    init(tmp_path, "east", now=NOW, server_names=["192.0.2.7"])
    assert why(init(tmp_path, "east", now=NOW, server_names=["192.0.2.8"])) == {
        "server": "lacks the names 192.0.2.8"
    }
    assert server_names(tmp_path) >= {"192.0.2.7", "192.0.2.8", "127.0.0.1"}


def test_a_shared_ca_key_stays_in_its_own_directory(tmp_path: Path) -> None:
    for cluster in ("east", "west"):
        init(tmp_path / cluster, cluster, now=NOW, ca_directory=tmp_path / "ca")
        assert "ca.key" not in content(tmp_path / cluster)
        assert content(tmp_path / cluster)["ca.crt"] == content(tmp_path / "ca")["ca.crt"]
        Store(tmp_path / cluster).load("admin", now=NOW)


def test_an_existing_ca_is_used_and_left_as_it_is(tmp_path: Path) -> None:
    authority = init_authority(tmp_path / "ca", now=NOW)
    before = content(tmp_path / "ca")
    init(tmp_path / "east", "east", now=NOW + DAY, ca_directory=tmp_path / "ca")
    assert content(tmp_path / "ca") == before
    assert Store(tmp_path / "east").bundle() == authority.bundle


def test_a_directory_belongs_to_one_cluster(tmp_path: Path) -> None:
    init(tmp_path, "east", now=NOW)
    before = content(tmp_path)
    with pytest.raises(CertificateError, match="is for 'admin-east', not for 'admin-west'"):
        init(tmp_path, "west", now=NOW)
    assert content(tmp_path) == before


def test_a_ca_of_the_clusters_own_is_not_put_aside_for_a_shared_one(tmp_path: Path) -> None:
    init(tmp_path / "east", "east", now=NOW)
    with pytest.raises(CertificateError, match="has a CA of its own"):
        init(tmp_path / "east", "east", now=NOW, ca_directory=tmp_path / "ca")
    with pytest.raises(CertificateError, match="has a CA of its own"):
        renew(tmp_path / "east", now=NOW, ca_directory=tmp_path / "ca")
    assert not (tmp_path / "ca").exists()


def test_half_a_ca_is_not_replaced_by_a_new_one(tmp_path: Path) -> None:
    init(tmp_path, "east", now=NOW)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(CertificateError, match=r"ca.key is missing"):
        init(tmp_path, "east", now=NOW)
    with pytest.raises(CertificateError, match=r"ca.key is missing: nothing can be signed"):
        renew(tmp_path, now=NOW)


def test_nothing_is_made_by_a_call_that_cannot_succeed(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="neither a DNS name nor an IP address"):
        init(tmp_path / "east", "east", now=NOW, server_names=["not a name"])
    assert not (tmp_path / "east").exists()


def test_renew_replaces_what_is_due_and_nothing_else(tmp_path: Path) -> None:
    init(tmp_path, "east", now=NOW, lifetime=90 * DAY)
    (tmp_path / "remote.crt").unlink()
    init(tmp_path, "east", now=NOW + 50 * DAY, lifetime=90 * DAY)
    before = content(tmp_path)
    assert renew(tmp_path, now=NOW + 50 * DAY) == ()
    issued = why(renew(tmp_path, now=NOW + 61 * DAY))
    assert issued == dict.fromkeys(
        ("admin", "local", "root", "server"), "is past two thirds of its lifetime"
    )
    changed = {name for name, data in content(tmp_path).items() if data != before[name]}
    assert changed == {f"{name}.{suffix}" for name in issued for suffix in ("crt", "key")}


def test_renewed_certificates_say_what_they_said_before(tmp_path: Path) -> None:
    init(tmp_path, "east", now=NOW, namespace="mesh", server_names=["x.example.org"])
    before = server_names(tmp_path)
    assert len(renew(tmp_path, now=NOW + 400 * DAY)) == 5
    assert server_names(tmp_path) == before
    assert not any(row.due for row in show(tmp_path, now=NOW + 400 * DAY))


def test_after_a_lost_key_everything_can_be_renewed_at_once(tmp_path: Path) -> None:
    init(tmp_path, "east", now=NOW)
    before = content(tmp_path)
    assert len(renew(tmp_path, now=NOW, everything=True)) == 5
    changed = {name for name, data in content(tmp_path).items() if data != before[name]}
    assert changed == before.keys() - {"ca.crt", "ca.key"}


def test_a_crash_between_key_and_certificate_is_healed_by_the_next_run(tmp_path: Path) -> None:
    init(tmp_path, "east", now=NOW)
    old = (tmp_path / "server.crt").read_bytes()
    renew(tmp_path, now=NOW, everything=True)
    (tmp_path / "server.crt").write_bytes(old)  # as a crash between the two renames leaves it
    assert why(renew(tmp_path, now=NOW)) == {"server": "its key is not the key of the certificate"}
    Store(tmp_path).load("server", now=NOW)


def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    init(tmp_path, "east", now=NOW)
    (tmp_path / "my-own.crt").write_text("mine")
    renew(tmp_path, now=NOW, everything=True)
    assert (tmp_path / "my-own.crt").read_text() == "mine"


def test_show_says_what_is_due_without_the_key_of_the_ca(tmp_path: Path) -> None:
    init(tmp_path / "east", "east", now=NOW, ca_directory=tmp_path / "ca")
    rows = show(tmp_path / "east", now=NOW + 300 * DAY)
    assert [row.name for row in rows] == ["ca", *LEAVES]
    assert [row.name for row in rows if row.due] == LEAVES


def trusts(server: Path, client: Path) -> bool:
    bundle = Store(server).bundle()
    certificate = Store(client).held("local")
    assert certificate is not None
    return not rejection(certificate.certificate, bundle, NOW)


def test_a_ca_is_replaced_without_a_moment_in_which_two_clusters_refuse_each_other(
    tmp_path: Path,
) -> None:
    """The steps of docs/certificates.md; after each renewal of each cluster, all trust all."""
    ca, new, east, west = (tmp_path / name for name in ("ca", "new", "east", "west"))
    for cluster in (east, west):
        init(cluster, cluster.name, now=NOW, ca_directory=ca)
    init_authority(new, now=NOW)
    old_crt, new_crt = ((d / "ca.crt").read_bytes() for d in (ca, new))

    issued = []

    def roll_out(bundle: bytes) -> None:
        (ca / "ca.crt").write_bytes(bundle)
        for cluster in (east, west):
            issued.append([row.name for row in renew(cluster, now=NOW, ca_directory=ca)])
            assert trusts(east, west)
            assert trusts(west, east)

    roll_out(old_crt + new_crt)  # trust the new one
    (new / "ca.key").replace(ca / "ca.key")
    roll_out(old_crt + new_crt)  # sign with it
    roll_out(new_crt)  # trust the old one no more
    assert issued == [["ca"], ["ca"], LEAVES, LEAVES, ["ca"], ["ca"]]
    assert Store(east).bundle() == Store(west).bundle() == Store(ca).bundle()
    assert len(Store(ca).bundle()) == 1
