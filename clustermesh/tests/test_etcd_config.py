from __future__ import annotations

from pathlib import Path

import pytest

from clustermesh.errors import UserError
from clustermesh.etcd import Endpoint, read_config

TLS = "{trusted-ca-file: ca.crt, cert-file: /etc/client.crt, key-file: client.key, "


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "west"
    path.write_text(TLS + "endpoints: ['https://west.mesh.cilium.io:2379', 'https://[::1]']}")
    config = read_config(path)
    assert config.endpoints == (
        Endpoint("west.mesh.cilium.io", 2379, tls=True),
        Endpoint("::1", 2379, tls=True),
    )
    assert [str(endpoint) for endpoint in config.endpoints] == [
        "https://west.mesh.cilium.io:2379",
        "https://[::1]:2379",
    ]
    assert config.files == (tmp_path / "ca.crt", Path("/etc/client.crt"), tmp_path / "client.key")


def test_the_certificate_may_be_for_another_name_than_is_dialled(tmp_path: Path) -> None:
    path = tmp_path / "west"
    path.write_text(TLS + "endpoints: ['https://192.0.2.1'], server-name: west.mesh.cilium.io}")
    (endpoint,) = read_config(path).endpoints
    assert (endpoint.authority, endpoint.certified_name) == (
        "192.0.2.1:2379",
        "west.mesh.cilium.io",
    )


def test_plain_http_on_loopback_needs_no_certificates(tmp_path: Path) -> None:
    path = tmp_path / "own"
    path.write_text("endpoints: ['http://127.0.0.1:2379', 'http://[::1]:1', 'http://localhost']")
    assert [endpoint.tls for endpoint in read_config(path).endpoints] == [False] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "missing required field `endpoints`"),
        ("endpoints: []", "endpoints: there is none (name one"),
        ("endpoints: https://127.0.0.1", "Expected `array`, got `str` - at `$.endpoints`"),
        ("endpoints: [1]", "Expected `str`, got `int` - at `$.endpoints[0]`"),
        ("{endpoints: ['http://10.0.0.1:2379']}", "is plain text to another machine (use https"),
        ("{endpoints: ['http://west.example']}", "http://west.example:2379 is plain text"),
        ("{endpoints: ['https://127.0.0.1:2379']}", "https://127.0.0.1:2379 needs certificates"),
        (TLS + "endpoints: ['ftp://127.0.0.1']}", "'ftp://127.0.0.1' is no URL of an etcd"),
        (TLS + "endpoints: ['https://']}", "'https://' is no URL of an etcd"),
        (TLS + "endpoints: ['https://a/b']}", "'https://a/b' is no URL of an etcd"),
        (TLS + "endpoints: ['https://a:b']}", "'https://a:b': Port could not be cast"),
        (TLS + "endpoints: ['https://a:99999']}", "'https://a:99999': Port out of range"),
        (TLS + "endpoints: ['https://[::1']}", "'https://[::1'"),
        (TLS + "endpoints: ['https://a'], insecure: true}", "contains unknown field `insecure`"),
        ("endpoints: [", "while parsing a flow node"),
        ("\0", "unacceptable character #x0000"),
        (b"\xff\xfe\xfd", "incomplete UTF-16 character"),
    ],
)
def test_a_mistake_is_named_with_file_and_field(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    path = tmp_path / "west"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError) as raised:
        read_config(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="west: cannot be read: No such file"):
        read_config(tmp_path / "west")
