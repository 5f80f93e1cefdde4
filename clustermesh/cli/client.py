"""Ask a daemon on this machine. The standard library's client: aiohttp takes 150 ms to import."""

from __future__ import annotations

import http.client
import socket
from typing import Annotated, Final, Literal, TypeAlias, TypeVar

import msgspec
from cyclopts import Parameter

from clustermesh.errors import UserError
from clustermesh.settings import Address, UnixAddress, parse_address

T = TypeVar("T")

AGENT: Final = "http://127.0.0.1:9879"
APISERVER: Final = "http://127.0.0.1:9880"

Output: TypeAlias = Annotated[
    Literal["table", "json"],
    Parameter(name=("--output", "-o"), help="A table for a person, or JSON."),
]
AgentAddress: TypeAlias = Annotated[str, Parameter(env_var="CLUSTERMESH_AGENT")]
ApiserverAddress: TypeAlias = Annotated[str, Parameter(env_var="CLUSTERMESH_APISERVER")]

_TIMEOUT: Final = 10.0


class NotRunningError(UserError):
    """Nobody answers at the address of a daemon."""


def get(daemon: str, address: str, path: str) -> bytes:
    """
    What `daemon` (agent or apiserver) at `address` answers to `GET path`.

    Raises:
        NotRunningError: nobody answers there.
        UserError: the answer is none, or says that it cannot be given.
    """
    where = parse_address(address)
    connection = _connection(where)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except TimeoutError as error:
        raise NotRunningError(
            f"the {daemon} at {where} does not answer within {_TIMEOUT:.0f} s"
        ) from error
    except (ConnectionRefusedError, FileNotFoundError, socket.gaierror) as error:
        raise NotRunningError(
            f"no {daemon} answers at {where}: {error.strerror}",
            hint=f"start clustermesh-{daemon}, or say where it listens with --{daemon}",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"the {daemon} at {where} broke off: {error!r}", hint="see its log") from (
            error
        )
    finally:
        connection.close()
    if response.status != 200:
        raise UserError(body.decode(errors="replace").strip() or f"{path}: {response.reason}")
    return body


def decode(daemon: str, address: str, body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """
    What `daemon` answered, as a row of `decoder`.

    Raises:
        UserError: it is none: something else listens there.
    """
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:
        raise UserError(f"what answers at {address} is no clustermesh-{daemon}: {error}") from error


def _connection(address: Address) -> http.client.HTTPConnection:
    if isinstance(address, UnixAddress):
        return _UnixConnection(address)
    return http.client.HTTPConnection(address.host, address.port, timeout=_TIMEOUT)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, address: UnixAddress) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(str(self._address.path))
