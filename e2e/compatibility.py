"""What was found beside each CNI, and the table of it in docs/compatibility.md."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from .topologies import TOPOLOGIES
from .topologies.topology import Topology

FILE: Final = Path(__file__).parents[1] / "docs/compatibility.md"

_BEGIN: Final = "<!-- Written by `pytest e2e/test_beside_any_cni.py --write-compatibility`. -->\n"
_END: Final = "<!-- The end of it. -->\n"
_FAMILIES: Final = (4, 6)
_CHECKS: Final = ("pods", "sizes", "nodes", "conntrack", "uninstall")


class Column(msgspec.Struct, frozen=True):
    """A way of getting from cluster to cluster."""

    name: str
    flags: tuple[str, ...]  # of `clustermesh sandbox up`
    mtu: int  # of what is inside, where packets of 1500 bytes fit between nodes


COLUMNS: Final = (
    Column("tunnel", ("--routing=tunnel",), 1450),
    Column("direct", ("--routing=direct",), 1500),
    Column("WireGuard", ("--encryption=wireguard",), 1440),  # over which either routing goes
)


class Findings:
    """Which checks passed, by topology, column and family. A check that was not made is absent."""

    def __init__(self) -> None:
        self._passed: dict[tuple[str, str, int], dict[str, bool]] = {}

    @contextlib.contextmanager
    def noting(
        self, column: Column, topology: Topology, family: int | None, check: str
    ) -> Iterator[None]:
        """Note whether a check passes; a family of None means both."""
        passed = False
        try:
            yield
            passed = True
        finally:
            for one in _FAMILIES if family is None else (family,):
                cell = self._passed.setdefault((topology.name, column.name, one), {})
                cell[check] = passed

    def cells(self) -> Mapping[tuple[str, str, int], str]:
        """What the table says where all was looked at, by name, column and family."""
        return {key: _cell(made) for key, made in self._passed.items() if "uninstall" in made}

    def table(self) -> str:
        """The table. Raises KeyError when not all was looked at."""
        cells = self.cells()
        headers = [f"{column.name} IPv{family}" for column in COLUMNS for family in _FAMILIES]
        lines = [_line("beside", *headers), _line(*["---"] * (1 + len(headers)))]
        lines += (
            _line(one.name, *(cells[one.name, c.name, f] for c in COLUMNS for f in _FAMILIES))
            for one in TOPOLOGIES
        )
        return "".join(lines)


def documented() -> Mapping[tuple[str, str, int], str]:
    """The cells of the table in the documents."""
    header, _, *lines = _block(FILE.read_text()).splitlines()
    columns = [re.fullmatch(r"(.+) IPv(\d)", name) for name in _split(header)[1:]]
    found = {}
    for line in lines:
        name, *cells = _split(line)
        for column, cell in zip(columns, cells, strict=True):
            assert column
            found[name, column[1], int(column[2])] = cell
    return found


def write(table: str) -> None:
    """Put the table into the documents."""
    text = FILE.read_text()
    FILE.write_text(text.replace(_block(text), table))


def _block(text: str) -> str:
    return text.partition(_BEGIN)[2].partition(_END)[0]


def _cell(made: Mapping[str, bool]) -> str:
    if failed := [check for check in _CHECKS if not made.get(check, True)]:
        return f"✗ {', '.join(failed)}"
    return "✓" if len(made) == len(_CHECKS) else "✓ pods only"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _split(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
