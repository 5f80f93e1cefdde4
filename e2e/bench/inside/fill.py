"""
Writes services straight into a cluster's etcd, as its apiserver would; that must not run.

Prints how many there are now, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from clustermesh import kinds
from clustermesh.etcd import Etcd, Write, make_config
from clustermesh.model import ClusterId, ClusterName, ObjectName, Port, Protocol, Service

PORT: Final = Port(Protocol.TCP, 80)
ETCD: Final = "https://127.0.0.1:2379"


def service_name(number: int) -> ObjectName:
    """What the service of that number is called, in every cluster."""
    return ObjectName("bench", f"service-{number}")


def main() -> None:
    """Write, and say how much."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cluster", required=True)
    parser.add_argument("--id", type=int, required=True)
    parser.add_argument("--certificates", type=Path, required=True)
    parser.add_argument("--start", type=int, default=0, help="number of the first service")
    parser.add_argument("--services", type=int, required=True, help="number after the last one")
    parser.add_argument("--first-frontend", help="its address; without, they are another cluster's")
    parser.add_argument("--backend", help="ADDRESS:PORT of the one backend that all of them have")
    parser.add_argument("--first-backend", help="its address; each service has two of its own")
    asyncio.run(_fill(parser.parse_args()))


async def _fill(options: argparse.Namespace) -> None:
    files = (options.certificates / name for name in ("ca.crt", "admin.crt", "admin.key"))
    kind = kinds.LOCAL_SERVICES if options.first_frontend else kinds.SERVICES
    prefix = kind.prefix(ClusterName(options.cluster))
    writes = [
        Write((prefix + kind.key(service.name)).encode(), kind.encode(service))
        for service in _services(options)
    ]
    async with Etcd(make_config([ETCD], *files, where="etcd")) as etcd:
        for outcome in await etcd.apply(writes):
            if outcome.error:
                raise outcome.error
    json.dump(options.services, sys.stdout)


def _services(options: argparse.Namespace) -> Iterator[Service]:
    ports = {"http": PORT}
    for number in range(options.start, options.services):
        backends = {}
        if options.backend:
            host, _, port = options.backend.rpartition(":")
            backends[ip_address(host)] = {"http": Port(Protocol.TCP, int(port))}
        if options.first_backend:
            first = ip_address(options.first_backend) + 2 * number
            backends |= {ip: {"http": Port(Protocol.TCP, 8080)} for ip in (first, first + 1)}
        frontend = options.first_frontend
        yield Service(
            cluster=ClusterName(options.cluster),
            cluster_id=ClusterId(options.id),
            name=service_name(number),
            frontends={ip_address(frontend) + number: ports} if frontend else {},
            backends=backends,
        )


if __name__ == "__main__":
    main()
