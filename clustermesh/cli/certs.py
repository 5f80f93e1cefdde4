"""`clustermesh certs`: make, look at and renew the certificates of a cluster."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

import certs
from clustermesh.errors import UserError
from clustermesh.model import parse_cluster_name

app = cyclopts.App(name="certs", help="Make, show and renew the certificates of a cluster.")
app.command(
    "clustermesh.cli.secrets:secrets",
    name="secrets",
    help="Keep them in Secrets: make what is missing, renew what is due.",
)

_Dir = Annotated[Path, Parameter(name="--dir")]
_Repeated = Parameter(negative="", show_default=False)
_Lifetime = Annotated[timedelta, Parameter(show_default=lambda default: f"{default.days}d")]
_OUTPUT = Parameter(name=("--output", "-o"))


@app.command
def init(
    *,
    directory: Annotated[Path | None, Parameter(name="--dir")] = None,
    cluster_name: Annotated[str, Parameter(show_default=False)] = "",
    ca_dir: Path | None = None,
    server_name: Annotated[tuple[str, ...], _Repeated] = (),
    remote: Annotated[tuple[str, ...], _Repeated] = (),
    namespace: str = certs.NAMESPACE,
    lifetime: _Lifetime = certs.LEAF_LIFETIME,
) -> None:
    """
    Make what is missing or due. Run again, it changes nothing.

    Parameters
    ----------
    directory
        The directory of this cluster's certificates. With only --ca-dir, just a CA is made.
    cluster_name
        The cluster that they are for.
    ca_dir
        The directory of a CA that several clusters share; made if there is none in it. Without it
        the cluster gets a CA of its own.
    server_name
        A DNS name or address that peers dial. Repeatable.
    remote
        A cluster that gets a certificate of its own to read this one. Repeatable.
    namespace
        Where the apiserver runs.
    lifetime
        How long certificates are good for: 365d, 12h.
    """
    now = datetime.now(UTC)
    if directory is None:
        if ca_dir is None or cluster_name:
            raise UserError("no directory for the certificates", hint="add --dir DIR")
        with _user_errors():
            certs.init_authority(ca_dir, now=now)
        print(f"{ca_dir}: CA is ready")
        return
    if not cluster_name:
        raise UserError("no cluster name", hint="add --cluster-name NAME")
    cluster = parse_cluster_name(cluster_name)
    remotes = [parse_cluster_name(name) for name in remote]
    with _user_errors():
        written = certs.init(
            directory,
            cluster,
            now=now,
            ca_directory=ca_dir,
            namespace=namespace,
            server_names=server_name,
            remotes=remotes,
            lifetime=lifetime,
        )
    _print_written(directory, written)


@app.command
def show(
    *, directory: _Dir, output: Annotated[Literal["table", "json"], _OUTPUT] = "table"
) -> None:
    """
    Show every certificate, until when it is good, and whether and why it is due for renewal.

    Parameters
    ----------
    directory
        The directory of a cluster's certificates.
    output
        How to print.
    """
    with _user_errors():
        rows = certs.show(directory, now=datetime.now(UTC))
    if output == "json":
        print(json.dumps([_as_json(row) for row in rows], indent=2))
    else:
        _print_table(rows)


@app.command
def renew(
    *,
    directory: _Dir,
    ca_dir: Path | None = None,
    server_name: Annotated[tuple[str, ...], _Repeated] = (),
    remote: Annotated[tuple[str, ...], _Repeated] = (),
    lifetime: _Lifetime = certs.LEAF_LIFETIME,
    everything: Annotated[bool, Parameter(name="--all", negative="")] = False,
) -> None:
    """
    Issue again, with new keys, the certificates that are due.

    Parameters
    ----------
    directory
        The directory of a cluster's certificates.
    ca_dir
        The directory of the CA, if it is not the same.
    server_name
        A name to add to the server certificate. Repeatable.
    remote
        A cluster to make a certificate for. Repeatable.
    lifetime
        How long certificates are good for: 365d, 12h.
    everything
        Those that are not due as well, as after a key was lost.
    """
    remotes = [parse_cluster_name(name) for name in remote]
    with _user_errors():
        written = certs.renew(
            directory,
            now=datetime.now(UTC),
            ca_directory=ca_dir,
            server_names=server_name,
            remotes=remotes,
            lifetime=lifetime,
            everything=everything,
        )
    _print_written(directory, written)


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    try:
        yield
    except certs.CertificateError as error:
        raise UserError(str(error), hint=error.hint) from error


def _print_written(directory: Path, written: Iterable[certs.Renewal]) -> None:
    written = tuple(written)
    for row in written:
        print(f"{directory / row.name}.crt: written ({row.reason or 'as asked'})")
    if not written:
        print(f"{directory}: nothing is due")


def _as_json(row: certs.Renewal) -> dict[str, object]:
    return {
        "name": row.name,
        "subject": row.subject,
        "not_after": row.not_after.isoformat() if row.not_after else None,
        "due": row.due,
        "reason": row.reason,
    }


def _print_table(rows: Iterable[certs.Renewal]) -> None:
    from rich.console import Console  # noqa: PLC0415 - costs start-up time; only a table needs it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table("NAME", "SUBJECT", "NOT AFTER", "DUE", box=None, pad_edge=False)
    for row in rows:
        end = f"{row.not_after:%Y-%m-%d %H:%M} UTC" if row.not_after else "-"
        table.add_row(
            row.name, row.subject, end, Text(row.reason or "-", "yellow" if row.due else "")
        )
    Console().print(table)
