"""
The pods of this node that are on the fast path: their addresses in a map, a program on their veths.

A pod is there when both are. What is in the map leads packets *to* it; what it sends itself only
passes the program if the map says that the source address is at home on that veth.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping

from agent.kernel import contents, layouts
from agent.kernel.fast_path import FastPath
from agent.rows import Pod
from clustermesh.model import IPAddress


class PodTarget:
    """A `Target` of pods by address."""

    def __init__(self, fast: FastPath) -> None:
        """Be the only writer of its pods."""
        self._fast = fast
        self._ports: dict[IPAddress, int] = {}  # of the pods that are in the map

    async def actual(self) -> Mapping[IPAddress, Pod]:
        """
        The pods that are there, with their programs: these are renewed first.

        A pod whose device has gone is not there, whatever the map says.
        """
        found = contents.read_pods(self._fast.pods)
        without = self._attach({pod.port for pod in found.values()})
        self._ports = {address: pod.port for address, pod in found.items()}
        self._fast.keep_pods(set(self._ports.values()) - without.keys())
        return {address: pod for address, pod in found.items() if pod.port not in without}

    async def apply(
        self, puts: Mapping[IPAddress, Pod], deletes: Collection[IPAddress]
    ) -> Mapping[IPAddress, OSError]:
        """Attach before a row is written. Fails per row: ENODEV when the device has just gone."""
        gone, new = list(deletes), list(puts)
        errors = self._fast.pods.delete(b"".join(map(layouts.pack_ip, gone)))
        failed = {gone[index]: error for index, error in errors.items()}
        without = self._attach({pod.port for pod in puts.values()})
        failed |= {a: without[puts[a].port] for a in new if puts[a].port in without}
        new = [address for address in new if address not in failed]
        errors = self._fast.pods.update(
            b"".join(map(layouts.pack_ip, new)),
            b"".join(layouts.pack_pod(puts[address]) for address in new),
        )
        failed |= {new[index]: error for index, error in errors.items()}
        self._ports |= {a: puts[a].port for a in new if a not in failed}
        for address in gone:
            self._ports.pop(address, None)
        self._fast.keep_pods(set(self._ports.values()))
        return failed

    async def drift(self) -> AsyncIterator[Collection[IPAddress] | None]:
        """End at once: devices that come and go make other rows."""
        return
        yield  # makes this a generator

    def _attach(self, ports: Collection[int]) -> dict[int, OSError]:
        """Attach to devices; those that cannot be attached to."""
        failed: dict[int, OSError] = {}
        for port in ports:
            try:
                self._fast.attach_pod(port)
            except OSError as error:
                failed[port] = error
        return failed
