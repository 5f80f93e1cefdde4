"""
WireGuard by `wireguard-go`, for kernels that have none: slow, but the same on the wire.

It is a process for each device, which goes when the device is deleted and lives on when the agent
ends. It is spoken to through a socket that is named as the device, in a directory that is fixed
when it is compiled. Several nodes on one machine have devices of one name, so each process gets a
mount namespace of its own, where that directory is another one.

The protocol (https://www.wireguard.com/xplatform/): a request is lines `key=value`, ended by an
empty line; so is the answer, whose last line is `errno=`. Keys are hexadecimal.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import shutil
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from agent.rows import UdpAddress

from .batch import Change, put_each
from .driver import Device, PeerChange, PeerConfig, PeerState

PROGRAM: Final = "wireguard-go"
SOCKETS: Final = Path("/var/run/wireguard")  # where it makes them

_READY_WITHIN: Final = 10.0  # seconds
_ANSWERS_WITHIN: Final = 30.0  # seconds; it takes some hundredths of one
_BATCH: Final = 100  # peers in a request
_LONGEST: Final = 1 << 28  # bytes of an answer; a peer has some hundred
_START: Final = (
    'mkdir -p "$1" && { [ "$0" -ef "$1" ] || mount --bind "$0" "$1"; } && exec "$2" "$3"'
)


class Userspace:
    """See Driver."""

    name: Final = PROGRAM

    def __init__(self, sockets: Path = SOCKETS, *, answers_within: float = _ANSWERS_WITHIN) -> None:
        """
        Args:
            sockets: the directory where sockets of this node are.
            answers_within: seconds after which a process that does not answer counts as hung.
        """
        self._sockets = sockets
        self._answers_within = answers_within

    def close(self) -> None:
        """See Driver: nothing is kept open."""

    async def create(self, device: str) -> None:
        """See Driver."""
        if self._answers(device):
            return
        program = shutil.which(PROGRAM)
        if program is None:
            raise OSError(errno.ENOENT, f"there is no program {PROGRAM}")
        self._sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = ["sh", "-c", _START, str(self._sockets), str(SOCKETS), program, device]
        if self._sockets != SOCKETS:
            command = ["unshare", "--mount", *command]
        # It leaves this process by itself, once the device is there.
        started = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_READY_WITHIN):
                code = await started.wait()
                if code:
                    raise OSError(errno.EIO, f"{PROGRAM} {device} ended with {code}")
                while not self._answers(device):  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
        except TimeoutError:
            if started.returncode is None:
                started.kill()
            late = f"{PROGRAM} {device} is not there within {_READY_WITHIN:g} s"
            raise TimeoutError(errno.ETIMEDOUT, late) from None

    async def read(self, device: str) -> Device:
        """See Driver."""
        return await asyncio.to_thread(_parse, await self._call(device, ["get=1"]))

    async def configure(self, device: str, private_key: bytes, port: int) -> None:
        """See Driver."""
        lines = ["set=1", f"private_key={private_key.hex()}", f"listen_port={port}"]
        await self._call(device, lines)

    async def put_peers(
        self, device: str, puts: Mapping[str, PeerChange], deletes: Collection[str]
    ) -> Mapping[str, OSError]:
        """See Driver."""

        async def put(batch: Sequence[Change]) -> None:
            lines = (line for key, change in batch for line in _peer_lines(key, change))
            await self._call(device, ["set=1", *lines])

        failed: dict[str, OSError] = {}
        rest = iter([*puts.items(), *((key, None) for key in deletes)])
        while batch := list(islice(rest, _BATCH)):
            failed |= await put_each(batch, put)
        return failed

    def _answers(self, device: str) -> bool:
        """Whether the process of a device is there: its socket file alone may be left over."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(str(self._sockets / f"{device}.sock"))
            except BlockingIOError:  # there, and busy
                return True
            except OSError:
                return False
        return True

    async def _call(self, device: str, lines: Iterable[str]) -> list[tuple[str, str]]:
        request = ("\n".join(lines) + "\n\n").encode()
        try:
            async with asyncio.timeout(self._answers_within):
                answer = await self._exchange(self._sockets / f"{device}.sock", request)
        except (FileNotFoundError, ConnectionRefusedError):
            raise OSError(errno.ENODEV, f"no {PROGRAM} runs for {device}") from None
        except TimeoutError:
            late = f"{PROGRAM} of {device} does not answer within {self._answers_within:g} s"
            raise TimeoutError(errno.ETIMEDOUT, late) from None
        pairs = [(key, value) for key, _, value in (line.partition("=") for line in answer)]
        if not pairs or pairs[-1][0] != "errno":
            raise ConnectionResetError(errno.ECONNRESET, f"{PROGRAM} of {device} broke off")
        number = abs(int(pairs[-1][1]))
        if number:
            raise OSError(number, f"{PROGRAM} of {device}: {os.strerror(number)}")
        return pairs[:-1]

    async def _exchange(self, path: Path, request: bytes) -> list[str]:
        """The lines of an answer, without the empty one that ends it."""
        reader, writer = await asyncio.open_unix_connection(path, limit=_LONGEST)
        try:
            writer.write(request)
            await writer.drain()
            answer = await reader.readuntil(b"\n\n")
        except asyncio.IncompleteReadError:
            return []
        finally:
            writer.transport.abort()  # who does not answer does not read the rest either
        return answer.decode().split("\n")[:-2]


def _peer_lines(public_key: str, change: PeerChange | None) -> Iterator[str]:
    yield f"public_key={base64.b64decode(public_key).hex()}"
    if change is None:
        yield "remove=true"
        return
    if change.endpoint is not None:
        yield f"endpoint={change.endpoint}"
    yield f"persistent_keepalive_interval={change.keepalive}"
    if change.only:
        yield "replace_allowed_ips=true"
    for network in change.allowed_ips:
        yield f"allowed_ip={network}"


class _Peer(msgspec.Struct):
    """A peer while its lines are being read."""

    fields: dict[str, str]
    allowed: list[str]

    def state(self) -> PeerState:
        get = self.fields.get
        networks = [ip_network(text) for text in self.allowed]
        networks.sort(key=lambda n: (n.version, int(n.network_address), n.prefixlen))
        config = PeerConfig(
            _endpoint(self.fields["endpoint"]) if "endpoint" in self.fields else None,
            tuple(networks),
            int(get("persistent_keepalive_interval", "0")),
        )
        seconds = int(get("last_handshake_time_sec", "0"))
        nanoseconds = int(get("last_handshake_time_nsec", "0"))
        return PeerState(
            config,
            seconds + nanoseconds / 1e9,
            int(get("rx_bytes", "0")),
            int(get("tx_bytes", "0")),
        )


def _parse(pairs: Iterable[tuple[str, str]]) -> Device:
    device: dict[str, str] = {}
    peers: dict[str, _Peer] = {}
    fields = device
    peer: _Peer | None = None
    for key, value in pairs:
        if key == "public_key":
            peer = peers[base64.b64encode(bytes.fromhex(value)).decode()] = _Peer({}, [])
            fields = peer.fields
        elif key == "allowed_ip" and peer is not None:
            peer.allowed.append(value)
        else:
            fields[key] = value
    return Device(
        bytes.fromhex(device.get("private_key", "")),
        int(device.get("listen_port", "0")),
        {key: peer.state() for key, peer in peers.items()},
    )


def _endpoint(text: str) -> UdpAddress:
    host, _, port = text.rpartition(":")
    return UdpAddress(ip_address(host.removeprefix("[").removesuffix("]")), int(port))
