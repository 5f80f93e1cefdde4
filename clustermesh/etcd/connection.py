from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from .config import Endpoint
from .credentials import Credentials
from .errors import UnreachableError

M = TypeVar("M", bound=Message)

_OPTIONS: Final = [
    ("grpc.max_receive_message_length", -1),
    # Without it, channels to one endpoint share a connection, and a thousand endpoints a lock.
    ("grpc.use_local_subchannel_pool", 1),
    # A dead peer is noticed within 15 s. etcd breaks off with a client that pings every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Who waits and for how long after a failure is for the callers to decide.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 3_000),  # in truth how long connecting may take
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
]


class Connection:
    """
    The two gRPC channels to one endpoint, with the certificates of one moment.

    Streams have a channel of their own, so that a long listing does not hold up live events.
    Nothing is connected before the first call.
    """

    def __init__(self, endpoint: Endpoint, credentials: Credentials | None) -> None:
        """
        Args:
            credentials: None for plain text.
        """
        self.endpoint = endpoint
        self._credentials = credentials
        self._calls = _channel(endpoint, credentials)
        self._streams = _channel(endpoint, credentials)
        self._methods: dict[str, Any] = {}
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._open: set[Stream[Any]] = set()
        self.retired: str | None = None  # why, once it is

    @property
    def user(self) -> str:
        """The name in our certificate; empty without one."""
        return self._credentials.user if self._credentials else ""

    async def call(self, method: str, request: Message, answer: type[M], timeout: float) -> M:
        """
        Make one call.

        Raises:
            grpc.aio.AioRpcError: it failed.
        """
        function = self._methods.get(method)
        if function is None:
            function = self._methods[method] = self._calls.unary_unary(
                method,
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
        self._in_flight += 1
        self._idle.clear()
        try:
            response: M = await function(request, timeout=timeout)
            return response
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    def stream(self, method: str, request: type[Message], answer: type[M]) -> Stream[M]:
        """Open a stream; close it when done."""
        function = self._streams.stream_stream(
            method,
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        # Without a leader a member would go on serving a watch that never sees a change.
        stream = Stream[M](self, function(metadata=(("hasleader", "true"),)))
        self._open.add(stream)
        return stream

    def forget(self, stream: Stream[Any]) -> None:
        """Forget a stream that is closed."""
        self._open.discard(stream)

    async def retire(self, reason: str) -> None:
        """End the streams, which resume elsewhere; let calls in flight finish; then close."""
        self.retired = reason
        for stream in tuple(self._open):
            stream.close()
        await self._idle.wait()  # not for long: every call has a timeout
        await self.close()

    async def close(self) -> None:
        """Close the channels and fail whatever goes on."""
        self.retired = self.retired or "closed"
        await self._calls.close()
        await self._streams.close()


class Stream(Generic[M]):
    """Messages to and from a server, in both directions."""

    def __init__(self, connection: Connection, stream: Any) -> None:
        self.connection = connection
        self._stream = stream
        self._ended = asyncio.Event()
        stream.add_done_callback(lambda _: self._ended.set())

    async def write(self, request: Message) -> None:
        """
        Send a message.

        Raises:
            UnreachableError: the connection was retired.
            grpc.aio.AioRpcError: the stream broke.
        """
        # gRPC's write waits for the connection: for ever, if the stream ends before there is one.
        writing = asyncio.ensure_future(self._stream.write(request))
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((writing, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            writing.cancel()
            await asyncio.gather(writing, ended, return_exceptions=True)
        if self._ended.is_set():
            await self.read()  # raises why
        with self._retirement():
            await writing

    async def read(self) -> M:
        """
        Receive a message.

        Raises:
            UnreachableError: the connection was retired, or the server ended the stream.
            grpc.aio.AioRpcError: the stream broke.
        """
        with self._retirement():
            answer = await self._stream.read()
        if answer is grpc.aio.EOF:
            raise UnreachableError(f"{self.connection.endpoint}: the server ended the stream")
        message: M = answer
        return message

    def close(self) -> None:
        """End the stream. Whoever reads gets an UnreachableError."""
        self._stream.cancel()
        self.connection.forget(self)

    @contextmanager
    def _retirement(self) -> Iterator[None]:
        """Tell a stream that we closed from a cancelled task: gRPC raises the same for both."""
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.connection.retired is None or (task and task.cancelling()):
                raise
            message = f"{self.connection.endpoint}: {self.connection.retired}"
            raise UnreachableError(message) from None


def _channel(endpoint: Endpoint, credentials: Credentials | None) -> Any:
    if credentials is None:
        return grpc.aio.insecure_channel(endpoint.authority, _OPTIONS)
    tls = grpc.ssl_channel_credentials(credentials.ca, credentials.key, credentials.cert)
    options = list[tuple[str, Any]](_OPTIONS)
    if endpoint.server_name:
        options.append(("grpc.ssl_target_name_override", endpoint.server_name))
    return grpc.aio.secure_channel(endpoint.authority, tls, options)
