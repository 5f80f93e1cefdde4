from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
import tempfile
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import aiohttp
import msgspec

from clustermesh.errors import UserError

from .config import KubeConfig
from .credentials import read
from .errors import (
    ConflictError,
    DeniedError,
    HistoryLostError,
    KubeError,
    NotFoundError,
    UnreachableError,
)

T = TypeVar("T")

PAGE: Final = 500
"""Objects to a page of a listing, as kubectl asks for: some megabytes."""

_LISTINGS: Final = 2
"""Pages under way at once. An API server that has just come back has many to serve."""

_CALL: Final = aiohttp.ClientTimeout(total=60.0, sock_connect=10.0)
_WATCH: Final = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=180.0)
"""There is a bookmark a minute: a server that says nothing for three has forgotten us."""

_EXEC: Final = 60.0  # seconds for a command in a container

_CHANNELS: Final = "v4.channel.k8s.io"
"""How a command's streams share a WebSocket: the first byte says 1 stdout, 2 stderr, 3 outcome."""

_NOT_RUN: Final = {
    403: "that takes the right to create pods/exec",
    404: "there is no such pod",
}
"""Why a command is not run in a container, by the code of HTTP."""

_WATCH_ENDS: Final = (300, 600)
"""Seconds after which the server ends a watch, somewhere between, so that they come back apart."""

_OPTIONS: Final = (
    # A server that vanished without a word is found out after half a minute.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)


class Resource(NamedTuple):
    """A kind of object as URLs name it."""

    api: str  # `v1`, or with a group, `discovery.k8s.io/v1`
    plural: str

    def path(self, name: str = "", namespace: str = "") -> str:
        """The path of an object, or, without a name, of all of them."""
        parts = ["apis" if "/" in self.api else "api", self.api]
        parts += ["namespaces", namespace] if namespace else []
        parts += [self.plural, name] if name else [self.plural]
        return "/" + "/".join(parts)


class Page(NamedTuple):
    """A part of a listing."""

    items: Sequence[msgspec.Raw]
    version: str  # of the listing as a whole: a watch goes on from there


class Change(msgspec.Struct, frozen=True, gc=False):
    """A line of a watch. `type` is ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: msgspec.Raw


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str
    continue_: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Details(msgspec.Struct, frozen=True, rename="camel"):
    retry_after_seconds: int = 0


class _Status(msgspec.Struct, frozen=True):
    """What the server says when it refuses."""

    message: str = ""
    code: int = 0
    details: _Details | None = None


class _Outcome(msgspec.Struct, frozen=True):
    """How a command in a container ended."""

    status: str = ""
    message: str = ""


class _Tls(NamedTuple):
    ca: bytes | None
    certificate: bytes | None
    key: bytes | None


class Kube:
    """An API server. Methods raise KubeError, and it is the caller who tries again."""

    def __init__(self, config: KubeConfig) -> None:
        self.config: Final = config
        self._session: aiohttp.ClientSession | None = None
        self._tls: _Tls | None = None
        self._listings = asyncio.Semaphore(_LISTINGS)
        self._changes = msgspec.json.Decoder(Change)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, resource: Resource, name: str, type_: type[T], *, namespace: str = "") -> T:
        """One object. Raises NotFoundError if it is not there."""
        return await self._read(resource.path(name, namespace), type_)

    async def create(
        self, resource: Resource, item: Mapping[str, Any], *, namespace: str = ""
    ) -> None:
        """Make an object. Raises ConflictError if there is one of that name."""
        await self._call("POST", resource.path(namespace=namespace), item)

    async def patch(
        self, resource: Resource, name: str, changes: Mapping[str, Any], *, namespace: str = ""
    ) -> None:
        """
        Change the named fields of an object (a JSON merge patch).

        Raises:
            NotFoundError: there is no such object.
            ConflictError: it is not of the `metadata.resourceVersion` that `changes` name.
        """
        await self._call("PATCH", resource.path(name, namespace), changes)

    async def delete(self, resource: Resource, name: str, *, namespace: str = "") -> None:
        """Remove an object; it may be gone already."""
        with contextlib.suppress(NotFoundError):
            await self._call("DELETE", resource.path(name, namespace))

    async def fetch(self, path: str, **query: str) -> bytes:
        """What the server answers to `GET path`: for what is not one object."""
        return await self._call("GET", path, query=query)

    async def run(
        self, namespace: str, pod: str, container: str, *command: str, timeout: float = _EXEC
    ) -> bytes:
        """
        Run a command in a container, as `kubectl exec` does, and return what it printed.

        A command that fails is no error if it printed something: its exit code is its opinion.

        Args:
            timeout: seconds until the command has to have ended.

        Raises:
            KubeError: it cannot be run, or failed without a word on stdout; with its stderr.
        """
        path = Resource("v1", "pods").path(pod, namespace) + "/exec"
        what = f"run {command[0]} in {namespace}/{pod}"
        query = [("container", container), ("stdout", "1"), ("stderr", "1")]
        query += [("command", word) for word in command]
        said: dict[int, bytearray] = {channel: bytearray() for channel in (1, 2, 3)}
        with self._failures(what):
            session, headers = await self._open()
            try:
                async with (
                    asyncio.timeout(timeout),
                    session.ws_connect(
                        f"{self.config.server}{path}",
                        params=query,
                        protocols=(_CHANNELS,),
                        headers={k: v for k, v in headers.items() if k == "Authorization"},
                        proxy=self.config.proxy,
                        server_hostname=self.config.server_name,
                        max_msg_size=0,
                    ) as socket,
                ):
                    async for message in socket:
                        if message.type is aiohttp.WSMsgType.BINARY and message.data:
                            said.setdefault(message.data[0], bytearray()).extend(message.data[1:])
            except aiohttp.WSServerHandshakeError as error:
                # Its body, which says why, is not to be had.
                reason = _NOT_RUN.get(error.status, "the container or its kubelet does not run")
                body = msgspec.json.encode({"message": reason, "code": error.status})
                raise self._refusal(what, body, error.status) from None
            except TimeoutError:
                text = f"{self.config.server}: {what}: no end within {timeout:g} s"
                raise KubeError(text) from None
            outcome = msgspec.json.decode(bytes(said[3]) or b"{}", type=_Outcome)
        if outcome.status != "Success" and not said[1]:
            reason = said[2].decode(errors="replace").strip() or outcome.message or "it broke off"
            raise KubeError(f"{self.config.server}: {what}: {reason}")
        return bytes(said[1])

    async def list(self, resource: Resource) -> AsyncGenerator[Page, None]:
        """
        Every object of a kind, as of one moment.

        Raises:
            HistoryLostError: it took so long that the moment is forgotten.
        """
        query = {"limit": str(PAGE)}
        while True:
            async with self._listings:
                found = await self._read(resource.path(), _List, query)
            yield Page(found.items or (), found.metadata.resource_version)
            if not found.metadata.continue_:
                return
            query["continue"] = found.metadata.continue_

    async def watch(self, resource: Resource, after: str) -> AsyncGenerator[Sequence[Change], None]:
        """
        Yield every change since the version `after`, until the server ends the watch.

        Begins with an empty batch, when the server has accepted. Bookmarks are passed on.

        Raises:
            HistoryLostError: `after` is too old.
        """
        query = {
            "watch": "1",
            "resourceVersion": after,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(*_WATCH_ENDS)),
        }
        what = f"watch {resource.plural}"
        with self._failures(what):
            async with await self._send(
                "GET", resource.path(), query=query, timeout=_WATCH
            ) as response:
                yield []
                rest = b""
                # A line may be longer than any limit of a reader of lines.
                async for data in response.content.iter_any():
                    end = data.rfind(b"\n") + 1
                    if not end:
                        rest += data
                        continue
                    changes = self._changes.decode_lines(rest + data[:end])
                    rest = data[end:]
                    if changes and changes[-1].type == "ERROR":
                        yield changes[:-1]
                        raise self._refusal(what, changes[-1].object, 0)
                    yield changes

    async def _read(self, path: str, type_: type[T], query: Mapping[str, str] | None = None) -> T:
        with self._failures(f"GET {path}"):
            return msgspec.json.decode(await self._call("GET", path, query=query), type=type_)

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> bytes:
        with self._failures(f"{method} {path}"):
            async with await self._send(method, path, body=body, query=query) as response:
                return await response.read()

    async def _send(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        timeout: aiohttp.ClientTimeout = _CALL,
    ) -> aiohttp.ClientResponse:
        """Return a good answer, unread. After a refused login try once more, with a new one."""
        for is_last in (False, True):
            session, headers = await self._open()
            if method == "PATCH":
                headers["Content-Type"] = "application/merge-patch+json"
            response = await session.request(
                method,
                self.config.server + path,
                params=query,
                data=None if body is None else msgspec.json.encode(body),
                headers=headers,
                proxy=self.config.proxy,
                server_hostname=self.config.server_name,
                allow_redirects=False,
                timeout=timeout,
            )
            if response.status < 300:
                return response
            async with response:
                if response.status == 401 and not is_last:
                    self.config.credentials.rejected()
                    continue
                raise self._refusal(f"{method} {path}", await response.read(), response.status)
        raise AssertionError("the second answer is returned or raised")

    async def _open(self) -> tuple[aiohttp.ClientSession, dict[str, str]]:
        """A session with what certificates there are now, and the headers of a request."""
        login = await self.config.credentials.login()
        tls = _Tls(read(self.config.ca), login.certificate, login.key)
        if self._session is None or tls != self._tls:
            old, self._tls = self._session, tls
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=self._context(tls), limit=0, socket_factory=_socket
                )
            )
            if old is not None:
                await old.close()  # watches start anew where they were
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # the server is near, its CPU is dear
            "Content-Type": "application/json",
            "User-Agent": "clustermesh",
        }
        if login.token:
            headers["Authorization"] = f"Bearer {login.token}"
        return self._session, headers

    def _context(self, tls: _Tls) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cadata=tls.ca.decode() if tls.ca else None)
            if not self.config.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if tls.certificate and tls.key:
                with _file(tls.certificate) as certificate, _file(tls.key) as key:
                    context.load_cert_chain(certificate, key)
        except (ssl.SSLError, ValueError) as error:
            raise DeniedError(f"{self.config.where}: its certificates: {error}") from None
        return context

    @contextlib.contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        """Make every failure a KubeError that says what failed, and where."""
        server = self.config.server
        try:
            yield
        except (KubeError, UserError):
            raise
        except msgspec.DecodeError as error:
            raise KubeError(f"{server}: {what}: the answer makes no sense: {error}") from None
        except aiohttp.ClientConnectorCertificateError as error:
            cause = error.certificate_error
            raise UnreachableError(f"{server}: its certificate: {cause}") from None
        except aiohttp.ClientConnectorError as error:
            raise UnreachableError(f"{server}: {_reason(error.os_error)}") from None
        except aiohttp.ClientPayloadError:
            raise UnreachableError(f"{server}: the connection broke") from None
        except TimeoutError:
            raise UnreachableError(f"{server}: no answer in time") from None
        except aiohttp.ClientError as error:
            raise UnreachableError(f"{server}: {error or type(error).__name__}") from None
        except OSError as error:  # a file of ours that cannot be read, a program that is not there
            raise DeniedError(f"{self.config.where}: {error}") from None

    def _refusal(self, what: str, body: bytes | msgspec.Raw, code: int) -> KubeError:
        try:
            status = msgspec.json.decode(body, type=_Status)
        except msgspec.DecodeError:
            said = bytes(body)[:200].decode(errors="replace").strip()
            unknown = "it does not know this kind of object: is the CRD missing?"
            status = _Status(unknown if code == 404 else said, code)
        code = status.code or code
        text = f"{self.config.server}: {what}: {code} {status.message}"
        if code == 401:
            text = f"{text}: {self.config.where} is not accepted; has it expired?"
        kind = {
            401: DeniedError,
            403: DeniedError,
            404: NotFoundError,
            409: ConflictError,
            410: HistoryLostError,
        }.get(code, KubeError)
        wait = status.details.retry_after_seconds if status.details else 0
        return kind(text, retry_after=float(wait))


def _reason(error: OSError) -> str:
    """What the system calls it: asyncio has a longer word for `Connection refused`."""
    if (
        error.errno is not None
        and error.errno > 0
        and not isinstance(error, ssl.SSLError | socket.gaierror)
    ):
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _socket(info: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = info
    opened = socket.socket(family, kind, protocol)
    for level, option, value in _OPTIONS:
        opened.setsockopt(level, option, value)
    return opened


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[Path]:
    """`ssl` reads certificates from files only. This one nobody else can read."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield Path(file.name)
