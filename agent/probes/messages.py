"""
What agents ask each other, and answer, in UDP packets.

# STABLE API: agents of one version talk to those of another. A field is never renamed, a new one
# has a default, and unknown ones are ignored.

A message is a little JSON with zeros behind it, so that it has the size that is to be tried. An
answer is never larger than its question: nobody can be flooded by way of an agent; and of what is
no larger than ours are, strangers can make it remember a bounded amount. There is nothing secret in
a message, and nothing that is said is believed but to name the cause of a failure.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from agent.rules.causes import Verdict, Word
from clustermesh.model import NOTHING

SMALL: Final = 512
"""Bytes of a small message: fits through any network, and has room for the longest names. No
message has more than that of JSON, whatever its size."""

_KEY_LENGTH: Final = 44  # a WireGuard key in base64
_VERDICTS: Final = frozenset(Verdict)


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """A question, or the answer to the one with the same token."""

    clustermesh: Literal["question", "answer"]
    token: str
    cluster: str  # whose the sender is
    node: str
    version: Literal[4, 6] = 4  # of IP: which of the ways between the two it is about
    about: str = ""  # of a question: the token of another one that nothing came back for
    is_short: bool = False  # of a question: a small answer will do
    seen: str = ""  # of an answer: the source address of the question
    about_seen: str = ""  # and that of the other one, if it arrived
    verdict: str = ""  # what the sender thinks of the way to the receiver
    rp_filtered: int = 0  # packets, lately, at the sender
    dropped: Mapping[str, int] = NOTHING  # lately, by the programs of the sender
    key: str = ""  # the sender's public key
    your_key: str = ""  # the receiver's, as the sender knows it


_MESSAGE: Final = msgspec.json.Decoder(Message)


def new_token() -> str:
    """Not to be guessed: only who has the question can answer it."""
    return secrets.token_hex(8)


def pack(message: Message, size: int) -> bytes | None:
    """The message in `size` bytes, without what is of less use if it does not fit; or None."""
    content = msgspec.json.encode(message)
    if len(content) > min(size, SMALL):
        content = msgspec.json.encode(msgspec.structs.replace(message, dropped=NOTHING))
    return content.ljust(size, b"\0") if len(content) <= min(size, SMALL) else None


def unpack(content: bytes) -> Message | None:
    """The message, if it is one."""
    said = content.rstrip(b"\0")
    if len(said) > SMALL:
        return None
    try:
        return _MESSAGE.decode(said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def word(message: Message) -> Word:
    """What the sender says of itself, without anything that would not be fit to print."""
    return Word(
        verdict=message.verdict if message.verdict in _VERDICTS else "",
        rp_filtered=max(0, message.rp_filtered),
        dropped={name: count for name, count in message.dropped.items() if count > 0},
        key=_printable(message.key),
        our_key=_printable(message.your_key),
    )


def _printable(key: str) -> str:
    return key if len(key) <= _KEY_LENGTH and key.isascii() and key.isprintable() else ""
