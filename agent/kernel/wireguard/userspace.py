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
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from agent.rows import UdpAddress

from .driver import Device, PeerConfig, PeerState

PROGRAM: Final = "wireguard-go"
SOCKETS: Final = Path("/var/run/wireguard")  # where it makes them

_READY_WITHIN: Final = 5.0  # seconds
_BATCH: Final = 500  # peers in a request
_START: Final = (
    'mkdir -p "$1" && { [ "$0" -ef "$1" ] || mount --bind "$0" "$1"; } && exec "$2" "$3"'
)


class Userspace:
    """See Driver."""

    name: Final = PROGRAM

    def __init__(self, sockets: Path = SOCKETS) -> None:
        """
        Args:
            sockets: the directory where sockets of this node are.
        """
        self._sockets = sockets

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
        code = await started.wait()
        if code:
            raise OSError(errno.EIO, f"{PROGRAM} {device} ended with {code}")
        async with asyncio.timeout(_READY_WITHIN):
            while not self._answers(device):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)

    async def read(self, device: str) -> Device:
        """See Driver."""
        return _parse(await self._call(device, ["get=1"]))

    async def configure(self, device: str, private_key: bytes, port: int) -> None:
        """See Driver."""
        lines = ["set=1", f"private_key={private_key.hex()}", f"listen_port={port}"]
        await self._call(device, lines)

    async def put_peers(
        self, device: str, puts: Mapping[str, PeerConfig], deletes: Collection[str]
    ) -> Mapping[str, OSError]:
        """See Driver."""
        failed: dict[str, OSError] = {}
        rest: Iterator[tuple[str, PeerConfig | None]] = iter(
            [*((key, None) for key in deletes), *puts.items()]
        )
        while batch := list(islice(rest, _BATCH)):
            lines = ["set=1", *(line for key, config in batch for line in _peer_lines(key, config))]
            try:
                await self._call(device, lines)
            except ConnectionError:
                raise
            except OSError as error:
                failed |= {key: error for key, _ in batch}
        return failed

    def _answers(self, device: str) -> bool:
        """Whether the process of a device is there: its socket file alone may be left over."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._sockets / f"{device}.sock"))
            except OSError:
                return False
        return True

    async def _call(self, device: str, lines: Iterable[str]) -> list[tuple[str, str]]:
        path = self._sockets / f"{device}.sock"
        try:
            reader, writer = await asyncio.open_unix_connection(path)
        except (FileNotFoundError, ConnectionRefusedError):
            raise OSError(errno.ENODEV, f"no {PROGRAM} runs for {device}") from None
        try:
            writer.write(("\n".join(lines) + "\n\n").encode())
            await writer.drain()
            answer = []
            while (line := (await reader.readline()).decode().rstrip("\n")) != "":
                answer.append(line)
        finally:
            writer.close()
        pairs = [(key, value) for key, _, value in (line.partition("=") for line in answer)]
        if not pairs or pairs[-1][0] != "errno":
            raise ConnectionResetError(errno.ECONNRESET, f"{PROGRAM} of {device} broke off")
        number = -int(pairs[-1][1])
        if number:
            number = abs(number)
            raise OSError(number, f"{PROGRAM} of {device}: {os.strerror(number)}")
        return pairs[:-1]


def _peer_lines(public_key: str, config: PeerConfig | None) -> Iterator[str]:
    yield f"public_key={base64.b64decode(public_key).hex()}"
    if config is None:
        yield "remove=true"
        return
    if config.endpoint is not None:
        yield f"endpoint={config.endpoint}"
    yield f"persistent_keepalive_interval={config.keepalive}"
    yield "replace_allowed_ips=true"
    for network in config.allowed_ips:
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
