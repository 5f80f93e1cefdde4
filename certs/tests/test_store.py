from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from certs import leaf
from certs.ca import common_name, create_authority
from certs.cluster import init
from certs.errors import CertificateError
from certs.leaf import issue
from certs.store import Store, write_atomically

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def east(tmp_path: Path) -> Path:
    init(tmp_path / "east", "east", now=NOW, remotes=["west"])
    return tmp_path / "east"


def modes(directory: Path, pattern: str) -> set[str]:
    return {oct(stat.S_IMODE(path.stat().st_mode)) for path in directory.glob(pattern)}


def test_what_was_written_can_be_loaded(east: Path) -> None:
    store = Store(east)
    assert store.names() == ("admin", "local", "remote", "remote-west", "root", "server")
    assert common_name(store.load("admin", now=NOW).certificate) == "admin-east"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_keys_are_the_owners_alone_whatever_the_umask_is(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        init(tmp_path / "east", "east", now=NOW)
    finally:
        os.umask(before)
    assert modes(tmp_path / "east", "*.key") == {"0o600"}
    assert modes(tmp_path / "east", "*.crt") == {"0o644"}
    assert modes(tmp_path, "east") == {oct(0o700)}


def test_a_file_is_whole_after_a_kill_at_any_moment(tmp_path: Path) -> None:
    """A child writes one of two contents over and over; each kill comes at another moment."""
    path = tmp_path / "server.key"
    contents = [b"a" * 300_000, b"b" * 300_000]
    child = textwrap.dedent(f"""
        from pathlib import Path
        from certs.store import write_atomically
        while True:
            for data in (b"a", b"b"):
                write_atomically({{Path({str(path)!r}): (data * 300_000, 0o600)}})
                print(flush=True)
    """)
    for writes in range(1, 9):
        process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
        with process:
            assert process.stdout is not None
            for _ in range(writes):
                process.stdout.readline()
            process.kill()
        assert path.read_bytes() in contents
        assert modes(tmp_path, "*.key") | modes(tmp_path, ".*.tmp") == {"0o600"}


def test_a_crash_before_the_rename_leaves_the_old_files_and_the_next_run_clears_up(
    east: Path,
) -> None:
    before = {path: path.read_bytes() for path in east.iterdir()}
    child = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from certs.store import write_atomically

        class Doomed(dict):
            def items(self):
                yield Path({str(east)!r}) / "server.key", (b"new", 0o600)
                os.kill(os.getpid(), signal.SIGKILL)

        write_atomically(Doomed())
    """)
    assert subprocess.run([sys.executable, "-c", child], check=False).returncode == -9
    [leftover] = east.glob(".*.tmp")
    assert leftover.read_bytes() == b"new"
    assert init(east, "east", now=NOW) == ()
    assert {path: path.read_bytes() for path in east.iterdir()} == before


def test_when_the_second_of_two_files_cannot_be_written_the_first_is_untouched(
    tmp_path: Path,
) -> None:
    key, lost = tmp_path / "server.key", tmp_path / "gone" / "server.crt"
    write_atomically({key: (b"old", 0o600)})
    with pytest.raises(CertificateError, match=r"gone/server.crt: cannot write: No such file"):
        write_atomically({key: (b"new", 0o600), lost: (b"new", 0o644)})
    assert key.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [key]


def foreign(directory: Path) -> None:
    other = issue(leaf.admin("east"), create_authority(now=NOW), now=NOW)
    Store(directory).write("admin", other)


def expired(directory: Path) -> None:
    pair = issue(leaf.admin("east"), Store(directory).authority(), now=NOW, lifetime=DAY)
    Store(directory).write("admin", pair)


def no_ca(directory: Path) -> None:
    (directory / "ca.crt").write_bytes((directory / "admin.crt").read_bytes())


def garbage(name: str) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        (directory / name).write_text("-----BEGIN NOTHING-----")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (foreign, r"admin.crt is signed by 'clustermesh CA \w+', which is not trusted here"),
        (expired, "admin.crt has expired on 2030-01-02 00:00 UTC"),
        (garbage("admin.crt"), "admin.crt: not a certificate in PEM"),
        (garbage("admin.key"), "admin.key: not a private key in PEM"),
        (garbage("ca.crt"), "ca.crt: not a certificate in PEM"),
        (no_ca, "ca.crt: CN=admin-east is not the certificate of a CA"),
        (lambda d: (d / "admin.key").unlink(), "admin.key: cannot read: No such file"),
        (lambda d: (d / "admin.crt").unlink(), "admin.crt: cannot read: No such file"),
        (lambda d: (d / "admin.key").chmod(0o640), r"admin.key: others .* read .*mode 0640"),
        (lambda d: (d / "server.key").replace(d / "admin.key"), "admin.key is not the key of"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(
    east: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(east)
    with pytest.raises(CertificateError, match=message) as caught:
        Store(east).load("admin", now=NOW + 2 * DAY)
    assert str(east) in str(caught.value)


def test_a_certificate_is_good_if_any_ca_of_the_bundle_signed_it(east: Path) -> None:
    foreign(east)
    with pytest.raises(CertificateError):
        Store(east).load("admin", now=NOW)
    other = create_authority(now=NOW)
    Store(east).write("admin", issue(leaf.admin("east"), other, now=NOW))
    with (east / "ca.crt").open("ab") as bundle:
        bundle.write(other.certificate.public_bytes(Encoding.PEM))
    assert common_name(Store(east).load("admin", now=NOW).certificate) == "admin-east"
    assert common_name(Store(east).load("local", now=NOW).certificate) == "local-east"


def test_a_ca_key_that_belongs_to_no_ca_of_the_bundle_is_named(east: Path, tmp_path: Path) -> None:
    init(tmp_path / "west", "west", now=NOW)
    (tmp_path / "west/ca.key").replace(east / "ca.key")
    with pytest.raises(CertificateError, match=r"ca.key: the key belongs to none of the CAs"):
        Store(east).authority()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CertificateError, match=r"file/east: Not a directory"):
        init(tmp_path / "file/east", "east", now=NOW)


def test_while_one_writes_no_other_can(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        with Store(tmp_path).writing(), pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(handle)
