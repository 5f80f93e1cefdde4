from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import certs
from clustermesh.cli.certs import app
from clustermesh.errors import UserError

Output = pytest.CaptureFixture[str]


def run(*words: str | Path) -> None:
    """As the main command runs it, without leaving the process."""
    app([str(word) for word in words], result_action="return_value")


def test_init_makes_the_certificates_of_a_cluster_and_says_which(
    tmp_path: Path, capsys: Output
) -> None:
    run("init", "--dir", tmp_path, "--cluster-name", "east", "--remote", "west", "--remote", "up")
    names = ["server", "root", "admin", "local", "remote", "remote-west", "remote-up"]
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/{name}.crt: written (missing)" for name in names
    ]
    run("init", "--dir", tmp_path, "--cluster-name", "east")
    assert capsys.readouterr().out == f"{tmp_path}: nothing is due\n"


def test_server_names_can_be_given_several_times_and_lifetimes_in_days(tmp_path: Path) -> None:
    names = ("--server-name", "192.0.2.7", "--server-name", "etcd.example.org")
    run("init", "--dir", tmp_path, "--cluster-name", "east", *names, "--lifetime", "30d")
    held = certs.Store(tmp_path).load("server", now=datetime.now(UTC))
    left = held.certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=29) < left <= timedelta(days=30)
    run("renew", "--dir", tmp_path, *names)  # has them all: nothing to do
    again = certs.Store(tmp_path).load("server", now=datetime.now(UTC))
    assert again.certificate == held.certificate


def test_clusters_share_the_ca_that_init_makes_on_its_own(tmp_path: Path, capsys: Output) -> None:
    ca = tmp_path / "ca"
    run("init", "--ca-dir", ca)
    assert capsys.readouterr().out == f"{ca}: CA is ready\n"
    for name in ("east", "west"):
        run("init", "--dir", tmp_path / name, "--cluster-name", name, "--ca-dir", ca)
        assert (tmp_path / name / "ca.crt").read_bytes() == (ca / "ca.crt").read_bytes()


def test_renew_issues_what_is_due_and_with_all_everything(tmp_path: Path, capsys: Output) -> None:
    run("init", "--dir", tmp_path, "--cluster-name", "east")
    (tmp_path / "admin.key").unlink()
    capsys.readouterr()
    run("renew", "--dir", tmp_path)
    assert capsys.readouterr().out == (
        f"{tmp_path}/admin.crt: written (its key is not the key of the certificate)\n"
    )
    run("renew", "--dir", tmp_path, "--all")
    assert capsys.readouterr().out.count(": written (as asked)") == 5


def test_show_prints_every_certificate_and_why_it_is_due(tmp_path: Path, capsys: Output) -> None:
    late = datetime.now(UTC) - timedelta(days=300)
    certs.init(tmp_path, "east", now=late)
    run("show", "--dir", tmp_path, "-o", "json")
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["ca", "admin", "local", "remote", "root", "server"]
    assert rows["admin"] == {
        "name": "admin",
        "subject": "admin-east",
        "not_after": (late + timedelta(days=365)).replace(microsecond=0).isoformat(),
        "due": True,
        "reason": "is past two thirds of its lifetime",
    }
    assert rows["ca"]["due"] is False
    run("show", "--dir", tmp_path)
    table = capsys.readouterr().out
    assert table.splitlines()[0].split() == ["NAME", "SUBJECT", "NOT", "AFTER", "DUE"]
    assert "admin-east" in table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init"], r"no directory .*add --dir DIR"),
        (["init", "--dir", "D"], r"no cluster name .*add --cluster-name NAME"),
        (["init", "--dir", "D", "--cluster-name", "East"], r"'East' is no cluster name"),
        (["init", "--dir", "D", "--cluster-name", "e", "--remote", "../x"], r"'\.\./x' is no"),
        (
            ["init", "--dir", "D", "--cluster-name", "e", "--server-name", "a b"],
            r"'a b' is neither",
        ),
        (["init", "--dir", "D", "--cluster-name", "e", "--lifetime", "0s"], "is none"),
        (["renew", "--dir", "D"], r"D: no certificates to renew \(make them with init\)"),
        (["show", "--dir", "D"], r"D/ca.crt: cannot read: No such file"),
    ],
)
def test_a_mistake_is_one_clear_line_with_a_hint(
    words: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(*(str(tmp_path / "D") if word == "D" else word for word in words))
    assert not (tmp_path / "D").exists()


def test_rich_is_not_imported_before_a_table_is_printed() -> None:
    code = "import sys, clustermesh.cli.certs; sys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
