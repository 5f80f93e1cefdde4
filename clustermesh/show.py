"""How tables are printed for a person. The rows come as the daemon served them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .status import RowFailure

Row = Mapping[str, Any]

COLUMNS: Final[Mapping[str, Sequence[str]]] = {
    "services": ("service", "cluster", "affinity", "shared", "frontends", "backends"),
    "frontends": ("service", "address", "affinity", "backends"),
    "nodes": ("cluster", "node", "addresses", "pod_cidrs", "public_key"),
    "routes": ("prefix", "for", "cluster", "node", "node_ip", "device"),
    "peers": ("cluster", "node", "device", "endpoint", "handshake_age", "received", "sent"),
    "identities": ("identity", "cluster", "labels"),
    "endpoints": ("address", "cluster", "pod", "identity", "node_ip"),
    "ipcache": ("prefix", "cluster_id", "identity", "node_ip"),
    "cidrs": ("cidr", "cluster", "node", "kind"),
    "connectivity": (
        *("from", "to", "ip", "address", "state"),
        *("loss", "round_trip", "mtu", "note"),
    ),
    "paths": (
        *("cluster", "node", "ip", "address", "state"),
        *("loss", "round_trip", "mtu", "age", "note"),
    ),
}
"""The fields that come first, in this order; other ones follow as they are met."""

_CAUSES: Final = ("refused", "conflict", "failing")
"""Fields that say why a row is not used, or of no use."""


def tables(
    name: str, rows: Sequence[Row], failures: Sequence[RowFailure] = ()
) -> Iterator[RenderableType]:
    """What to print: the table `name` sorted by its columns, then what is wrong with it."""
    columns = columns_of(name, rows)
    if rows:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column.replace("_", " ").upper(), overflow="fold")
        for row in sorted(rows, key=lambda row: [_sortable(row.get(c)) for c in columns]):
            refused = any(row.get(cause) for cause in _CAUSES)
            cells = [cell(row.get(column)) for column in columns]
            table.add_row(*cells, style="red" if refused else "")
        yield table
    else:
        yield Text(f"no {name}", style="dim")
    for line in troubles(columns, rows, failures):
        yield Text(line, style="red")


def columns_of(name: str, rows: Iterable[Row]) -> list[str]:
    """The fields that some row has, the known ones first."""
    seen = dict.fromkeys(field for row in rows for field in row if field not in _CAUSES)
    known = [column for column in COLUMNS.get(name, ()) if column in seen]
    return [*known, *(field for field in seen if field not in known)]


def troubles(
    columns: Sequence[str], rows: Iterable[Row], failures: Iterable[RowFailure]
) -> Iterator[str]:
    """A line for each row that is not used or not in its place, with the cause."""
    for row in rows:
        for cause in _CAUSES:
            if row.get(cause):
                name = " ".join(str(cell(row.get(column))) for column in columns[:2])
                yield f"{cause}: {name}: {row[cause]}"
    for failure in failures:
        what = "the whole table" if failure.key is None else failure.key
        origin = f" (from {failure.origin})" if failure.origin else ""
        yield f"failed: {what}{origin}: {failure.error}{_again(failure)}"


def cell(value: object) -> Text:
    """A field as text: an item of a list a line, the values of a mapping side by side."""
    if isinstance(value, Mapping):
        return Text(" ").join(cell(v) for v in value.values() if v not in (None, ""))
    if isinstance(value, list | tuple):
        return Text("\n").join(cell(v) for v in value) if value else Text("-", style="dim")
    if value is None or value == "":
        return Text("-", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    return Text(str(value))


def _again(failure: RowFailure) -> str:
    if failure.retry_in is None:
        return ""
    return f"; tried {failure.attempts} times, again in {failure.retry_in:.1f} s"


def _sortable(value: object) -> tuple[int, int, str]:
    """Numbers before text; numbers by size."""
    if isinstance(value, int):
        return (0, value, "")
    return (1, 0, cell(value).plain)
