"""Who we are for an API server. Whatever may be rotated is read again for each request."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeAlias

import msgspec

from .errors import DeniedError

Material: TypeAlias = Path | bytes
"""A token, certificate or key: the file that it is in, or itself."""

_EXEC_TIMEOUT: Final = 60.0  # seconds
_EARLY: Final = 10.0  # seconds before its end that a login is not used any more


class Login(NamedTuple):
    """What we show to the server."""

    token: str | None = None
    certificate: bytes | None = None  # PEM
    key: bytes | None = None  # PEM


class Credentials(Protocol):
    """Where logins come from."""

    async def login(self) -> Login:
        """What to show now. Raises OSError if it cannot be had."""

    def rejected(self) -> None:
        """The server did not accept the last one: do not give it again if there is a choice."""


class Given(NamedTuple):
    """A token, a client certificate, both or neither, as the settings or files say."""

    token: Material | None = None
    certificate: Material | None = None
    key: Material | None = None

    async def login(self) -> Login:
        """See Credentials. The files are read anew: a token in a pod is replaced every hour."""
        token = read(self.token)
        return Login(
            token.decode().strip() if token else None, read(self.certificate), read(self.key)
        )

    def rejected(self) -> None:
        """See Credentials. There is no other; perhaps the file is about to be replaced."""


class _Status(msgspec.Struct, frozen=True, rename="camel"):
    token: str | None = None
    client_certificate_data: str | None = None
    client_key_data: str | None = None
    expiration_timestamp: datetime | None = None


class _ExecCredential(msgspec.Struct, frozen=True):
    status: _Status


class Exec:
    """A program that prints an ExecCredential, as clouds have it. Run again when that expires."""

    def __init__(
        self, command: str, arguments: tuple[str, ...], environment: Mapping[str, str], info: str
    ) -> None:
        """
        Args:
            environment: what is added to ours.
            info: the ExecCredential that the program is told in KUBERNETES_EXEC_INFO, as JSON.
        """
        self._command = command
        self._arguments = arguments
        self._environment = {**environment, "KUBERNETES_EXEC_INFO": info}
        self._login: Login | None = None
        self._good_until = 0.0  # seconds since the epoch
        self._running = asyncio.Lock()  # one program answers everybody who waits

    async def login(self) -> Login:
        """See Credentials."""
        async with self._running:
            if self._login is None or time.time() > self._good_until - _EARLY:
                self._take(await self._run())
            assert self._login is not None, "it was taken"
            return self._login

    def rejected(self) -> None:
        """See Credentials."""
        self._login = None

    async def _run(self) -> bytes:
        process = await asyncio.create_subprocess_exec(
            self._command,
            *self._arguments,
            env={**os.environ, **self._environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_EXEC_TIMEOUT):
                output, complaint = await process.communicate()
        except TimeoutError:
            raise DeniedError(
                f"{self._command} has not answered for {_EXEC_TIMEOUT:.0f} s"
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            reason = complaint.decode(errors="replace").strip()
            raise DeniedError(f"{self._command} failed with code {process.returncode}: {reason}")
        return output

    def _take(self, output: bytes) -> None:
        try:
            status = msgspec.json.decode(output, type=_ExecCredential).status
        except msgspec.DecodeError as error:
            raise DeniedError(f"{self._command} printed no ExecCredential: {error}") from None
        certificate, key = status.client_certificate_data, status.client_key_data
        self._login = Login(
            status.token,
            certificate.encode() if certificate else None,
            key.encode() if key else None,
        )
        end = status.expiration_timestamp
        self._good_until = end.timestamp() if end else float("inf")


def read(material: Material | None) -> bytes | None:
    """Raises OSError if the file cannot be read."""
    return material.read_bytes() if isinstance(material, Path) else material
