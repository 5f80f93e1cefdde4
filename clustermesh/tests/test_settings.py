from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from clustermesh.errors import UserError
from clustermesh.settings import (
    CommaSeparated,
    DaemonSettings,
    TcpAddress,
    UnixAddress,
    UsageError,
    check_node_name,
    parse_address,
    read_settings,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings(DaemonSettings):
    """Be a daemon of a test."""

    peers: CommaSeparated = ()
    "Whom to talk to."

    state_dir: Path = Path("/var/lib/x")
    "Where to keep things."


def read(*arguments: str) -> Settings:
    return read_settings(Settings, name="testd", version="1.2.3", arguments=arguments)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "testd.yaml"


def test_a_flag_wins_over_the_environment_which_wins_over_the_file_which_wins_over_the_default(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(
        "cluster-name: file\ncluster-id: 1\nlog-level: debug\nmax-connected-clusters: 511\n"
    )
    monkeypatch.setenv("CLUSTERMESH_CLUSTER_NAME", "environment")
    monkeypatch.setenv("CLUSTERMESH_CLUSTER_ID", "2")
    monkeypatch.setenv("CLUSTERMESH_LOG_LEVEL", "error")

    settings = read("--config", str(config), "--cluster-name", "flag")

    assert settings == Settings(
        cluster_name="flag", cluster_id=2, log_level="error", max_connected_clusters=511
    )


def test_the_file_may_be_named_by_the_environment(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("{cluster-name: east, cluster-id: 7, state-dir: /x}")
    monkeypatch.setenv("CLUSTERMESH_CONFIG", str(config))
    assert read() == Settings(cluster_name="east", cluster_id=7, state_dir=Path("/x"))


BASE = ("--cluster-name=east", "--cluster-id=1")


def test_a_list_is_comma_separated_or_repeated_or_a_list_in_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(*BASE, "--peers", "a,b", "--peers", "c").peers == ("a", "b", "c")
    config.write_text("peers: [a, b]")
    assert read(*BASE, "--config", str(config)).peers == ("a", "b")
    config.write_text("peers: a, b")
    assert read(*BASE, "--config", str(config)).peers == ("a", "b")
    monkeypatch.setenv("CLUSTERMESH_PEERS", "d,e")
    assert read(*BASE, "--config", str(config)).peers == ("d", "e")


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("cluster-idd: 3", "cluster-idd"),
        ("cluster-id: many", "cluster-id"),
        ("cluster-id: [1, 2]", "cluster-id"),
        ("cluster-id: {a: 1}", "cluster-id"),
        ("cluster-id:", "cluster-id"),
        ("cluster-id: true", "cluster-id"),
        ("max-connected-clusters: 300", "max-connected-clusters"),
        ("log-format: xml", "log-format"),
        ("config: other.yaml", "another"),
        ("- cluster-id", "no settings"),
        ("just text", "no settings"),
        ("a: [", "no YAML"),
        ("a: \0", "no YAML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_file_and_key(
    content: str, names: str, config: Path
) -> None:
    config.write_text(content)
    with pytest.raises(UsageError) as caught:
        read(*(flag for flag in BASE if content[:10] not in flag), "--config", str(config))
    message = str(caught.value)
    assert str(config) in message
    assert names in message
    assert "\n" not in message


def test_an_unreadable_file_is_named(config: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"cannot read {config}: No such file"):
        read(*BASE, "--config", str(config))
    with pytest.raises(UsageError, match=f"cannot read {tmp_path}: Is a directory"):
        read(*BASE, "--config", str(tmp_path))


def test_a_missing_setting_says_the_three_ways_to_give_it() -> None:
    with pytest.raises(UsageError) as caught:
        read("--cluster-name", "east")
    assert str(caught.value) == (
        "--cluster-id is missing (or set CLUSTERMESH_CLUSTER_ID, or cluster-id in --config)"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cluster-id=0"], "cluster id 0 is out of range (choose 1-255)"),
        (["--cluster-id=256"], "cluster id 256 is out of range (choose 1-255)"),
        (
            ["--cluster-id=512", "--max-connected-clusters=511"],
            "cluster id 512 is out of range (choose 1-511)",
        ),
        (["--cluster-name=East"], "'East' is no cluster name"),
        (["--nonsense"], "Unknown option: --nonsense (see testd --help)"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(flags: list[str], message: str) -> None:
    given = {flag.partition("=")[0] for flag in flags}
    base = [flag for flag in BASE if flag.partition("=")[0] not in given]
    with pytest.raises(UserError) as caught:
        read(*base, *flags)
    assert str(caught.value).startswith(message)


def test_help_is_made_of_the_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for words in ("Be a daemon of a test.", "Whom to talk to.", "CLUSTERMESH_PEERS", "--config"):
        assert words in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--version")
    assert caught.value.code == 0
    assert capsys.readouterr().out == "1.2.3\n"


@pytest.mark.parametrize(
    ("text", "address", "printed"),
    [
        ("127.0.0.1:9879", TcpAddress("127.0.0.1", 9879), "127.0.0.1:9879"),
        ("http://localhost:80/", TcpAddress("localhost", 80), "localhost:80"),
        ("[::1]:0", TcpAddress("::1", 0), "[::1]:0"),
        ("unix:/run/x.sock", UnixAddress(Path("/run/x.sock")), "unix:/run/x.sock"),
    ],
)
def test_addresses(text: str, address: TcpAddress | UnixAddress, printed: str) -> None:
    assert parse_address(text) == address
    assert str(address) == printed


@pytest.mark.parametrize("text", ["", "localhost", ":80", "a:b", "a:65536", "a:-1", "unix:", "a:²"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no address"):
        parse_address(text)


def test_node_names_are_those_of_kubernetes() -> None:
    for good in ("node1", "ip-10-0-0-1.eu.internal"):
        check_node_name(good)
    for bad in ("", "Node", "a..b", "-a", "a-", "a_b", "a" * 254, "a\n"):
        with pytest.raises(UserError, match="is no node name"):
            check_node_name(bad)
