"""Answers the probes of other nodes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeVar

import msgspec

from agent.kernel.udp import HEADERS, UdpSocket
from agent.rules.probes import PathKey
from clustermesh.model import ClusterName, IPAddress

from .messages import SMALL, Message, pack, unpack

K = TypeVar("K")
V = TypeVar("V")

log = logging.getLogger(__name__)

_REMEMBERED: Final = 8192  # questions, and as many nodes: enough for a thousand of them

_PATIENCE: Final = 1.5  # times as long as a node lets one wait for its next question
_LONGEST: Final = 30.0  # seconds: who was silent for longer than that was away
_FADES: Final = 0.9  # of the longest wait with each question, so that a new rhythm is soon known


class _Heard(NamedTuple):
    """The last question of a node."""

    at: float  # in the time of the loop
    question: Message
    rhythm: float = 0.0  # seconds that it lets one wait at most, as it did lately


class Echo:
    """
    Listens on addresses of this node: on those in its pod CIDRs, and on its own.

    It remembers what it was asked: so it can say of a question that was never answered whether it
    arrived, and that a node which does not answer does send.
    """

    def __init__(self, port: int, about_us: Callable[[PathKey], Message]) -> None:
        """
        Args:
            about_us: what this node says of itself to the one at the other end of a way.
        """
        self._port = port
        self._about_us = about_us
        self._sockets: dict[IPAddress, UdpSocket] = {}
        self._asked: OrderedDict[str, str] = OrderedDict()  # source address by token
        self._heard: OrderedDict[PathKey, _Heard] = OrderedDict()
        self._awaited: dict[PathKey, asyncio.Event] = {}
        self.failure: str | None = None
        """Why it does not listen on all of them."""

    def listen(self, addresses: Iterable[IPAddress]) -> None:
        """Listen on these, and on no others."""
        wanted = set(addresses)
        for gone in self._sockets.keys() - wanted:
            self._sockets.pop(gone).close()
        self.failure = None
        for address in wanted - self._sockets.keys():
            try:
                self._sockets[address] = UdpSocket(address, self._port, self._received(address))
            except OSError as error:
                self.failure = f"{address} UDP port {self._port}: {error.strerror}"
                log.warning("probes are not answered on %s", self.failure)

    def close(self) -> None:
        """Answer no more."""
        self.listen(())

    def heard(self, key: PathKey, since: float) -> Message | None:
        """What a node last asked since a time of the loop, by whichever of its addresses."""
        last = self._heard.get(key)
        return last.question if last and last.at >= since else None

    async def hear(self, key: PathKey, since: float) -> Message | None:
        """
        The same, and wait for it until that node would have asked again.

        That is no time at all if it has been silent for longer than it used to be, or for ever.
        """
        last = self._heard.get(key)
        if last is not None and last.at < since:
            awaited = self._awaited[key] = asyncio.Event()
            try:
                async with asyncio.timeout_at(last.at + _PATIENCE * last.rhythm):
                    await awaited.wait()
            except TimeoutError:
                pass
            finally:
                del self._awaited[key]
        return self.heard(key, since)

    def _received(self, address: IPAddress) -> Callable[[bytes, IPAddress, int], None]:
        def received(content: bytes, source: IPAddress, port: int) -> None:
            question = unpack(content)
            if question is None or question.clustermesh != "question":
                return
            key = PathKey(ClusterName(question.cluster), question.node, question.version)
            self._hear(key, question)
            _remember(self._asked, question.token, str(source))
            with contextlib.suppress(OSError):  # who asked will notice
                socket = self._sockets[address]
                size = _size(question, len(content), lambda: socket.mtu_to(source))
                answer = pack(self._answer(question, key, source), size)
                if answer is not None:
                    socket.send(answer, source, port)

        return received

    def _hear(self, key: PathKey, question: Message) -> None:
        now, last = _now(), self._heard.get(key)
        rhythm = max(min(now - last.at, _LONGEST), last.rhythm * _FADES) if last else 0.0
        _remember(self._heard, key, _Heard(now, question, rhythm))
        if awaited := self._awaited.get(key):
            awaited.set()

    def _answer(self, question: Message, key: PathKey, source: IPAddress) -> Message:
        return msgspec.structs.replace(
            self._about_us(key),
            clustermesh="answer",
            token=question.token,
            seen=str(source),
            about_seen=self._asked.get(question.about, ""),
        )


def _size(question: Message, size: int, mtu: Callable[[], int]) -> int:
    """
    Bytes of the answer to a question of `size` bytes.

    To a large one it is as large as we would send by ourselves, which need not be what they send.
    """
    if question.is_short or size <= SMALL:
        return min(size, SMALL)
    return min(size, mtu() - HEADERS[question.version])


def _remember(memory: OrderedDict[K, V], key: K, value: V) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > _REMEMBERED:
        memory.popitem(last=False)


def _now() -> float:
    return asyncio.get_running_loop().time()
