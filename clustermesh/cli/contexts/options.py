"""Options that the verbs share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from cyclopts import Parameter

from clustermesh.errors import UserError
from clustermesh.kube import KubeError
from clustermesh.settings import CommaSeparated, TcpAddress, parse_address

T = TypeVar("T")

Context: TypeAlias = Annotated[
    str | None, Parameter(help="Context of the kubeconfig; by default the current.")
]
Contexts: TypeAlias = Annotated[
    CommaSeparated,
    Parameter(help="Contexts of the kubeconfig, with commas or given several times."),
]
Kubeconfig: TypeAlias = Annotated[
    Path | None, Parameter(help="Kubeconfig file; by default what kubectl reads.")
]
Namespace: TypeAlias = Annotated[
    str | None,
    Parameter(
        name=("--namespace", "-n"),
        help="Namespace of the installation; by default it is looked for everywhere.",
    ),
]
Chart: TypeAlias = Annotated[
    str | None, Parameter(help="The chart; by default the one of this version of clustermesh.")
]
HelmProgram: TypeAlias = Annotated[
    str, Parameter(name="--helm", env_var="CLUSTERMESH_HELM", help="The helm to use, 3 or 4.")
]
Flag = Parameter(negative="")


def run(work: Coroutine[Any, Any, T]) -> T:
    """
    Run a verb's work to its end.

    Raises:
        UserError: also for what an API server answered.
    """
    try:
        return asyncio.run(work)
    except KubeError as error:
        raise UserError(str(error)) from error


def parse_endpoints(texts: tuple[str, ...]) -> dict[str, list[str]]:
    """
    `NAME=HOST:PORT` or `NAME=HOST`, by the names of clusters.

    Raises:
        UserError: one is neither.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, address = text.partition("=")
        if not (name and equals and address):
            raise UserError(f"{text!r} is no endpoint", hint="write NAME=HOST:PORT")
        found.setdefault(name, []).append(str(_with_port(address)))
    return found


def _with_port(text: str) -> TcpAddress:
    has_port = text.rpartition("]")[2].count(":") == 1
    address = parse_address(text if has_port else f"{text}:2379")
    if not isinstance(address, TcpAddress):
        raise UserError(f"{text!r} is no endpoint", hint="write NAME=HOST:PORT")
    return address
