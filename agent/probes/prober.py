"""Asks the agents of other nodes, and waits for what comes back."""

from __future__ import annotations

import asyncio
from typing import Self

import msgspec

from agent.kernel.udp import HEADERS, Returned, UdpSocket
from clustermesh.model import IPAddress

from .messages import Message, pack, unpack


class Reply(msgspec.Struct, frozen=True):
    """What came back. Without anything nothing did, in the time there was."""

    answer: Message | None = None
    round_trip: float | None = None  # seconds
    error: int = 0  # errno
    reporter: IPAddress | None = None  # who said so; None: our own kernel
    mtu: int = 0  # with EMSGSIZE: what would fit

    def is_refused_by(self, address: IPAddress) -> bool:
        """Whether it arrived, and nobody listens there: the way is good both ways."""
        return bool(self.error) and self.reporter == address


class Prober:
    """
    Asks from one address of this node, and only for one look.

    Each look has a port of its own, and so is a new connection to whatever remembers those on the
    way: it fares as connections that are made now, and not as those of long ago.
    """

    def __init__(self, source: IPAddress, port: int) -> None:
        """
        Args:
            port: where agents answer.

        Raises:
            OSError: it is no address of this node any more.
        """
        self.source = source
        self._port = port
        self._socket = UdpSocket(source, 0, self._received, self._returned)
        self._waiting: dict[str, tuple[IPAddress, asyncio.Future[Reply]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def mtu(self, target: IPAddress) -> int:
        """Bytes of the largest packet that fits; 0: there is no way."""
        try:
            return self._socket.mtu_to(target)
        except OSError:
            return 0

    async def ask(self, question: Message, target: IPAddress, size: int, timeout: float) -> Reply:
        """
        Send a question in a packet of `size` bytes, and wait for an answer, an error or the end.

        Args:
            timeout: seconds.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        content = pack(question, size - HEADERS[target.version])
        if content is None:
            return Reply()
        future: asyncio.Future[Reply] = loop.create_future()
        self._waiting[question.token] = target, future
        try:
            self._socket.send(content, target, self._port)
            async with asyncio.timeout(timeout):
                reply = await future
        except TimeoutError:
            return Reply()
        except OSError as error:
            return Reply(error=error.errno or 0, mtu=self.mtu(target))
        finally:
            del self._waiting[question.token]
        return msgspec.structs.replace(reply, round_trip=loop.time() - started)

    def _received(self, content: bytes, source: IPAddress, port: int) -> None:
        del port
        answer = unpack(content)
        if answer is None or answer.clustermesh != "answer":
            return
        target, future = self._waiting.get(answer.token, (None, None))
        if future is not None and target == source and not future.done():
            future.set_result(Reply(answer))

    def _returned(self, returned: Returned) -> None:
        question = unpack(returned.content)
        target, future = self._waiting.get(question.token if question else "", (None, None))
        if future is not None and target == returned.destination and not future.done():
            future.set_result(
                Reply(error=returned.error, reporter=returned.reporter, mtu=returned.mtu)
            )
