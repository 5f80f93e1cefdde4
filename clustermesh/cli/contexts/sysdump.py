"""`clustermesh sysdump`: what one needs to look into a problem, in one file, without secrets."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from cyclopts import Parameter

from clustermesh.errors import UserError
from clustermesh.files import replace_file
from clustermesh.kube import Kube, KubeError, Resource

from .connect import opened
from .installation import find_apiserver
from .objects import (
    CONFIG_MAPS,
    DAEMON_SETS,
    DEPLOYMENTS,
    NODES,
    PODS,
    SECRETS,
    SERVICE_CIDRS,
    SERVICES,
)
from .options import Contexts, Kubeconfig, Namespace, run
from .overview import overview
from .pods import AT_ONCE, Answer, table_of
from .status import see

_EVERYWHERE: Final = (
    NODES,
    SERVICE_CIDRS,
    Resource("clustermesh.io/v1alpha1", "meshnodes"),
    Resource("clustermesh.io/v1alpha1", "meshidentities"),
)
_LABELLED: Final = {"labelSelector": "app.kubernetes.io/part-of=clustermesh"}
_OURS: Final = (
    DEPLOYMENTS,
    DAEMON_SETS,
    PODS,
    SERVICES,
    CONFIG_MAPS,
    Resource("discovery.k8s.io/v1", "endpointslices"),
    Resource("policy/v1", "poddisruptionbudgets"),
    Resource("networking.k8s.io/v1", "networkpolicies"),
)
_WITHOUT_LABELS: Final = (
    Resource("coordination.k8s.io/v1", "leases"),
    Resource("v1", "events"),
)


File: TypeAlias = tuple[str, bytes]
"""Its name, and what is in it."""


def sysdump(
    *,
    context: Contexts,
    file: Annotated[Path | None, Parameter(show_default=False)] = None,
    log_lines: int = 2000,
    nodes: int = 20,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """
    Collect what one needs to look into a problem: objects, logs, status and tables.

    Of Secrets only the names and sizes of what is in them are kept. What cannot be had is listed
    in failures.txt.

    Parameters
    ----------
    file
        The archive to write; by default clustermesh-sysdump-TIME.tar.gz.
    log_lines
        Lines of each container's log, and of its predecessor's.
    nodes
        How many agents are asked for their logs and tables at most.
    """
    if not context:
        raise UserError("of which cluster?", hint="say --context CONTEXT")
    now = datetime.now(UTC)
    target = file or Path(f"clustermesh-sysdump-{now:%Y%m%d-%H%M%S}.tar.gz")
    failures = run(_dump(context, namespace, kubeconfig, target, log_lines=log_lines, nodes=nodes))
    print(f"{target} is written; {failures} things could not be had, see failures.txt in it")


async def _dump(
    contexts: Sequence[str],
    namespace: str | None,
    kubeconfig: Path | None,
    target: Path,
    *,
    log_lines: int,
    nodes: int,
) -> int:
    """Write the archive, and return how many things are not in it that should be."""
    failures: list[str] = []
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        async with opened(kubeconfig, contexts) as kubes:
            for context, kube in kubes.items():
                collected = _Collector(kube, context, namespace, failures)
                async for name, content in collected.everything(log_lines, nodes):
                    _add(archive, f"{_safe(context)}/{name}", content)
        _add(archive, "failures.txt", "".join(f"{line}\n" for line in failures).encode())
    try:
        replace_file(target.absolute(), buffer.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from None
    return len(failures)


class _Collector:
    """Everything of one cluster, as files. What fails is noted, and the rest goes on."""

    def __init__(
        self, kube: Kube, context: str, namespace: str | None, failures: list[str]
    ) -> None:
        self._kube = kube
        self._context = context
        self._namespace = namespace
        self._failures = failures
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def everything(self, log_lines: int, nodes: int) -> AsyncIterator[File]:
        """
        Names and contents of files.

        Args:
            nodes: of how many agents at most.
        """
        try:
            deployment = await find_apiserver(self._kube, self._context, self._namespace)
            namespace = deployment.metadata.namespace
            async for file in self._objects(namespace):
                yield file
            seen = await see(self._kube, self._context, namespace)
            yield "status.json", msgspec.json.format(msgspec.json.encode(overview(seen)))
            for component, answers in (
                ("apiserver", seen.apiserver_answers),
                ("agent", seen.agent_answers),
            ):
                pods = [self._of_pod(answer, component, log_lines) for answer in answers[:nodes]]
                for files in await asyncio.gather(*map(self._in_turn, pods)):
                    for file in files:
                        yield file
        except (KubeError, UserError) as error:
            self._failures.append(f"{self._context}: {error}")

    async def _objects(self, namespace: str) -> AsyncIterator[File]:
        async for file in self._fetch("version.json", "/version"):
            yield file
        for resource in _EVERYWHERE:
            async for file in self._fetch(f"{resource.plural}.json", resource.path()):
                yield file
        for resource in (*_OURS, *_WITHOUT_LABELS):
            query = {} if resource in _WITHOUT_LABELS else _LABELLED
            name, path = f"{namespace}/{resource.plural}.json", resource.path(namespace=namespace)
            async for file in self._fetch(name, path, **query):
                yield file
        path = SECRETS.path(namespace=namespace)
        async for name, content in self._fetch("secrets.json", path, **_LABELLED):
            yield f"{namespace}/{name}", _without_secrets(content)

    async def _in_turn(self, files: AsyncIterator[File]) -> list[File]:
        async with self._turns:
            return [file async for file in files]

    async def _of_pod(self, answer: Answer, component: str, log_lines: int) -> AsyncIterator[File]:
        """The logs of a pod, and every table that its daemon says it has."""
        pod = answer.pod
        name = pod.metadata.name
        path = PODS.path(name, pod.metadata.namespace) + "/log"
        for container in pod.spec.containers:
            query = {"container": container.name, "tailLines": str(log_lines)}
            file = f"{pod.metadata.namespace}/{name}/{container.name}"
            async for log in self._fetch(f"{file}.log", path, **query):
                yield log
            status = next(
                (s for s in pod.status.container_statuses if s.name == container.name), None
            )
            if status and status.restart_count:
                async for log in self._fetch(f"{file}.previous.log", path, previous="1", **query):
                    yield log
        if answer.status is None:
            self._failures.append(f"{self._context}: {name}: no tables: {answer.failure}")
            return
        for table in answer.status.tables:
            try:
                content = await table_of(self._kube, pod, component, table)
            except (KubeError, UserError) as error:
                self._failures.append(f"{self._context}: {name}: table {table}: {error}")
            else:
                yield f"{pod.metadata.namespace}/{name}/{table}.json", content

    async def _fetch(self, name: str, path: str, **query: str) -> AsyncIterator[File]:
        try:
            yield name, await self._kube.fetch(path, **query)
        except (KubeError, UserError) as error:
            self._failures.append(f"{self._context}: {error}")


def _without_secrets(content: bytes) -> bytes:
    """Secrets, with the sizes of their values in the place of these."""
    listing: dict[str, Any] = msgspec.json.decode(content)
    kept = []
    for item in listing.get("items") or ():
        metadata = item["metadata"]
        sizes = {key: len(text) for key, text in (item.get("data") or {}).items()}
        names = {key: metadata.get(key) for key in ("name", "creationTimestamp", "labels")}
        kept.append({"metadata": names, "type": item.get("type"), "bytes of base64": sizes})
    return msgspec.json.encode({"items": kept})


def _safe(context: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in context)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(f"clustermesh-sysdump/{name}")
    entry.size = len(content)
    entry.mtime = int(datetime.now(UTC).timestamp())
    archive.addfile(entry, io.BytesIO(content))
