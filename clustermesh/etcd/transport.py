from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self, TypeVar

import grpc
from google.protobuf.message import Message

from .config import Endpoint, EtcdConfig
from .connection import Connection, Stream
from .credentials import Credentials, fingerprint, load
from .errors import DeniedError, EtcdError, HistoryLostError, LeaseLostError, UnreachableError
from .probe import probe

M = TypeVar("M", bound=Message)

log = logging.getLogger(__name__)

CALL_TIMEOUT: Final = 10.0  # seconds
_AUTH_CHANGED: Final = "revision of auth store is old"
"""What etcd answers to a call that was on its way while a user or role changed."""
_AUTH_CHANGES: Final = 20
_AUTH_SETTLES: Final = 0.05  # seconds
_PROBE_EVERY: Final = 5.0  # seconds for which a diagnosis holds


class Transport:
    """
    Calls and streams to whichever endpoint answers, with the certificates that are on disk now.

    One endpoint is used for everything until it fails; then the next one is. A call that finds its
    endpoint dead is made again at the others, once each, which is why all our calls are idempotent.

    When a certificate file changes, calls in flight finish on the old connection, new ones use a
    new one, and streams end with an UnreachableError, so that their readers resume on the new one.
    Files that do not fit together, as in the middle of a rotation, change nothing.
    """

    def __init__(self, config: EtcdConfig, *, reload_every: float = 5.0) -> None:
        """
        Args:
            reload_every: seconds between looks at the certificate files. Looking costs 10 µs, and,
                unlike inotify, sees through the symlinks of a Kubernetes volume.
        """
        self.config = config
        self._reload_every = reload_every
        self._endpoints = list(config.endpoints)  # the one in use first
        self._connections: dict[Endpoint, Connection] = {}
        self._fingerprint: tuple[object, ...] = ()
        self._credentials: Credentials | None = None
        self.certificate_problem: str | None = None
        self._tasks = asyncio.TaskGroup()
        self._diagnosis: tuple[float, asyncio.Task[str | None]] | None = None

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint in use."""
        return self._endpoints[0]

    @property
    def user(self) -> str:
        """The name in our certificate; empty before it was read, and without one."""
        return self._credentials.user if self._credentials else ""

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._follower = self._tasks.create_task(
            self._follow_certificates(), name=f"certificates for {self.endpoint}"
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._follower.cancel()
        if self._diagnosis is not None:
            self._diagnosis[1].cancel()
        for connection in self._connections.values():
            await connection.close()
        # The group would wrap an error of the body into an ExceptionGroup, which nobody expects.
        is_cancelled = isinstance(error, asyncio.CancelledError)
        outcome = (kind, error, trace) if is_cancelled else (None, None, None)
        await self._tasks.__aexit__(*outcome)

    async def call(
        self, method: str, request: Message, answer: type[M], what: str, timeout: float
    ) -> M:
        """
        Make one call at the first endpoint that answers.

        Args:
            what: what is asked for, to be read after "cannot" or "may not".

        Raises:
            EtcdError: and UnreachableError with the cause, if no endpoint answers.
        """
        tries, changes = len(self._endpoints), _AUTH_CHANGES
        while True:
            connection = self._connect()
            try:
                return await connection.call(method, request, answer, timeout)
            except grpc.aio.AioRpcError as error:
                failure = _translate(error, connection, what)
                if _AUTH_CHANGED in str(failure) and changes:
                    changes -= 1
                    await asyncio.sleep(_AUTH_SETTLES)
                    continue
                if not isinstance(failure, UnreachableError):
                    raise failure from error
                self._fail_over(connection)
                tries -= 1
                if not tries:
                    raise await self._explain(failure, what) from error

    @asynccontextmanager
    async def stream(
        self, method: str, request: type[Message], answer: type[M], what: str
    ) -> AsyncIterator[Stream[M]]:
        """Open a stream at the endpoint in use. The body raises what `call` does."""
        connection = self._connect()
        stream = connection.stream(method, request, answer)
        try:
            yield stream
        except grpc.aio.AioRpcError as error:
            failure = _translate(error, connection, what)
            if not isinstance(failure, UnreachableError):
                raise failure from error
            self._fail_over(connection)
            raise await self._explain(failure, what) from error
        except UnreachableError:  # ended by the server, or silent
            self._fail_over(connection)
            raise
        finally:
            stream.close()

    def _connect(self) -> Connection:
        connection = self._connections.get(self.endpoint)
        if connection is None:
            if self.endpoint.tls and self._credentials is None:
                self._reload()
            credentials = self._credentials if self.endpoint.tls else None
            connection = self._connections[self.endpoint] = Connection(self.endpoint, credentials)
        return connection

    def _fail_over(self, failed: Connection) -> None:
        """
        Move on to the next endpoint.

        The connection is not kept for later: gRPC would answer from its memory for up to a second,
        without trying, and so fail a call to an endpoint that is back.
        """
        endpoint = failed.endpoint
        if self._connections.get(endpoint) is not failed:
            return  # of several calls that fail together only the first moves on
        self._endpoints.remove(endpoint)
        self._endpoints.append(endpoint)
        self._retire(failed, "the connection failed")

    def _retire(self, connection: Connection, reason: str) -> None:
        del self._connections[connection.endpoint]
        name = f"retire {connection.endpoint}"
        self._tasks.create_task(connection.retire(reason), name=name)

    async def _explain(self, failure: UnreachableError, what: str) -> UnreachableError:
        """Have the probe find the cause. One probe answers for all that fails about then."""
        now = asyncio.get_running_loop().time()
        if self._diagnosis is None or self._diagnosis[0] + _PROBE_EVERY < now:
            name = f"probe {self.endpoint}"
            task = self._tasks.create_task(asyncio.to_thread(probe, self.config), name=name)
            self._diagnosis = (now, task)
        cause = await asyncio.shield(self._diagnosis[1])
        return failure if cause is None else UnreachableError(f"cannot {what}: {cause}")

    async def _follow_certificates(self) -> None:
        while True:
            await asyncio.sleep(self._reload_every)
            if not self._fingerprint or fingerprint(self.config) == self._fingerprint:
                continue
            try:
                self._reload()
            except UnreachableError as error:
                if str(error) != self.certificate_problem:
                    log.warning("the certificates have changed, but cannot be used yet: %s", error)
                    self.certificate_problem = str(error)
                continue
            self.certificate_problem = None
            log.info("%s: reconnecting with new certificates", self.endpoint)
            self._diagnosis = None
            for connection in tuple(self._connections.values()):
                self._retire(connection, "reconnecting with new certificates")

    def _reload(self) -> None:
        before = fingerprint(self.config)
        credentials = load(self.config)
        if fingerprint(self.config) != before:
            raise UnreachableError(f"{self.config.cert}: is being replaced at this moment")
        self._credentials, self._fingerprint = credentials, before


def _translate(error: grpc.aio.AioRpcError, connection: Connection, what: str) -> EtcdError:
    code, details = error.code(), error.details() or error.code().name
    where = connection.endpoint
    match code:
        case grpc.StatusCode.PERMISSION_DENIED:
            return DeniedError(f"{where}: user {connection.user or 'nobody'} may not {what}")
        case grpc.StatusCode.OUT_OF_RANGE:
            return HistoryLostError(f"{where}: cannot {what}: {details}")
        case grpc.StatusCode.NOT_FOUND if "lease" in details:
            return LeaseLostError(f"{where}: cannot {what}: {details}")
        case (
            grpc.StatusCode.UNAVAILABLE
            | grpc.StatusCode.DEADLINE_EXCEEDED
            | grpc.StatusCode.CANCELLED
        ):
            return UnreachableError(f"{where}: cannot {what}: {details}")
    return EtcdError(f"{where}: cannot {what}: {details}")
