from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.lanes import parity
from agent.own_keys import OwnKeys
from clustermesh.errors import UserError


def test_a_node_has_an_even_key_first_and_keeps_it(tmp_path: Path) -> None:
    keys = OwnKeys.open(tmp_path / "node1", now=100.0)
    assert parity(keys.current.public) == 0
    assert keys.rows[keys.current.public].age == 0
    again = OwnKeys.open(tmp_path / "node1", now=200.0)
    assert again.current == keys.current
    (file,) = (tmp_path / "node1").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_private_key_is_that_of_the_public_one_as_a_device_says_it(tmp_path: Path) -> None:
    keys = OwnKeys.open(tmp_path, now=0.0)
    raw = keys.private(0)
    assert (raw[0] & 0b111, raw[31] & 0b11000000) == (0, 0b01000000)
    public = X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
    assert base64.b64encode(public).decode() == keys.current.public
    assert keys.current.private not in repr(keys.current)


def test_a_rotation_survives_the_agent(tmp_path: Path) -> None:
    keys = OwnKeys.open(tmp_path, now=0.0)
    first = keys.current
    keys.rotate(now=10.0)
    again = OwnKeys.open(tmp_path, now=20.0)
    assert again.previous == first
    assert parity(again.current.public) == 1
    assert {row.parity: row.age for row in again.rows.values()} == {0: 1, 1: 0}
    again.retire()
    assert OwnKeys.open(tmp_path, now=30.0).previous is None
    with pytest.raises(KeyError):
        again.private(0)


def test_what_cannot_be_kept_does_not_hold(tmp_path: Path) -> None:
    keys = OwnKeys.open(tmp_path / "node1", now=0.0)
    first = keys.current
    (tmp_path / "node1").rename(tmp_path / "gone")
    with pytest.raises(OSError, match="No such file"):
        keys.rotate(now=1.0)
    assert (keys.current, keys.previous) == (first, None)


def test_a_file_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    (tmp_path / "wireguard.keys").write_text("{}")
    with pytest.raises(UserError, match=r"wireguard\.keys"):
        OwnKeys.open(tmp_path, now=0.0)
