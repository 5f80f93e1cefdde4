"""
The WireGuard keys of this node: made here, kept in one file that only root can read, never told.

After a rotation the previous key stays for a while, with its devices: see lanes.py. What is in the
file is what holds, so an agent that dies in the middle of a rotation goes on with it.
"""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Final

import msgspec

from clustermesh.errors import UserError
from clustermesh.files import replace_file

from .lanes import parity
from .rows import OwnKey

log = logging.getLogger(__name__)

_FILE: Final = "wireguard.keys"


class KeyPair(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """A private key, its public one, and when they were made (seconds since the epoch)."""

    private: str
    public: str
    made_at: float

    def __repr__(self) -> str:
        return f"KeyPair({self.public})"  # whatever prints one: the private key is not in it


class _Kept(msgspec.Struct, frozen=True):
    current: KeyPair
    previous: KeyPair | None = None


class OwnKeys:
    """The current key of this node, and while it is being replaced the previous one."""

    def __init__(self, path: Path, kept: _Kept) -> None:
        """Use `open` instead."""
        self._path = path
        self._kept = kept

    @classmethod
    def open(cls, directory: Path, *, now: float) -> OwnKeys:
        """
        The keys that are kept in `directory`, or a first one.

        Raises:
            UserError: they cannot be read or kept.
        """
        path = directory / _FILE
        try:
            return cls(path, msgspec.json.decode(path.read_bytes(), type=_Kept))
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            raise UserError(
                f"{path}: no WireGuard key can be read: {error}",
                hint="remove the file, and the node gets a new one",
            ) from error
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            keys = cls(path, _Kept(_new_pair(0, now)))
            keys._save()
        except OSError as error:
            raise UserError(f"{path}: no WireGuard key can be kept: {error}") from error
        return keys

    @property
    def current(self) -> KeyPair:
        """The one that is published."""
        return self._kept.current

    @property
    def previous(self) -> KeyPair | None:
        """The one before, while some peer may still use it."""
        return self._kept.previous

    @property
    def rows(self) -> dict[str, OwnKey]:
        """What the rules know of them."""
        found = {self.current.public: OwnKey(parity(self.current.public), age=0)}
        if self.previous:
            found[self.previous.public] = OwnKey(parity(self.previous.public), age=1)
        return found

    def private(self, parity_: int) -> bytes:
        """The private key of a kind that there is one of."""
        for pair in (self.current, self.previous):
            if pair is not None and parity(pair.public) == parity_:
                return base64.b64decode(pair.private)
        raise KeyError(parity_)

    def rotate(self, *, now: float) -> None:
        """
        Make the next key, and keep the current one beside it. Not while there is a previous one.

        Raises:
            OSError: it cannot be kept; then nothing has changed.
        """
        old = self.current
        self._replace(_Kept(_new_pair(1 - parity(old.public), now), old))
        log.info("a new WireGuard key: %s", self.current.public)

    def retire(self) -> None:
        """
        Forget the previous key.

        Raises:
            OSError: the file cannot be written; then nothing has changed.
        """
        self._replace(_Kept(self.current))

    def _replace(self, kept: _Kept) -> None:
        before, self._kept = self._kept, kept
        try:
            self._save()
        except OSError:
            self._kept = before
            raise

    def _save(self) -> None:
        replace_file(self._path, msgspec.json.encode(self._kept), mode=0o600)


def _new_pair(parity_: int, now: float) -> KeyPair:
    """A key of the wanted kind: every other one is."""
    # Takes 5 MB, which an agent that has its keys does without.
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415

    while True:
        private = X25519PrivateKey.generate()
        public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
        if parity(public) == parity_:
            # As a device will say it: with the bits set and cleared that X25519 sets and clears.
            raw = bytearray(private.private_bytes_raw())
            raw[0] &= 0b11111000
            raw[31] = raw[31] & 0b01111111 | 0b01000000
            return KeyPair(base64.b64encode(raw).decode(), public, made_at=now)
