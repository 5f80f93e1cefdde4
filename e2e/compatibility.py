"""What was found beside each CNI, and the table of it in docs/compatibility.md."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from .topologies import TOPOLOGIES
from .topologies.topology import Topology

Encryption: TypeAlias = Literal["none", "wireguard"]
Routing: TypeAlias = Literal["tunnel", "direct", "native"]

FILE: Final = Path(__file__).parents[1] / "docs/compatibility.md"

_BEGIN: Final = "<!-- Written by `pytest e2e/test_beside_any_cni.py --write-compatibility`. -->\n"
_END: Final = "<!-- The end of it. -->\n"
_FAMILIES: Final = (4, 6)
_CHECKS: Final = ("pods", "sizes", "nodes", "conntrack", "uninstall")
_MTUS: Final[Mapping[Routing, int]] = {"tunnel": 1450, "direct": 1500, "native": 1500}
_ENCRYPTED_MTU: Final = 1440


class Column(msgspec.Struct, frozen=True):
    """A way of getting from cluster to cluster."""

    encryption: Encryption
    routing: Routing

    @property
    def name(self) -> str:
        """The head of the column."""
        return f"WireGuard, {self.routing}" if self.encryption == "wireguard" else self.routing

    @property
    def mtu(self) -> int:
        """Bytes of what is inside, where packets of 1500 fit between nodes."""
        return _ENCRYPTED_MTU if self.encryption == "wireguard" else _MTUS[self.routing]


ENCRYPTIONS: Final[tuple[Encryption, ...]] = ("none", "wireguard")
ROUTINGS: Final[tuple[Routing, ...]] = ("tunnel", "direct", "native")
COLUMNS: Final = tuple(itertools.starmap(Column, itertools.product(ENCRYPTIONS, ROUTINGS)))


class Findings:
    """Which checks passed, by topology, column and family. A check that was not made is absent."""

    def __init__(self) -> None:
        self._passed: dict[tuple[str, str, int], dict[str, bool]] = {}

    @contextlib.contextmanager
    def noting(
        self,
        topology: Topology,
        columns: Collection[Column],
        check: str,
        families: Collection[int] = _FAMILIES,
    ) -> Iterator[None]:
        """Note whether a check passes, for all of these columns and families at once."""
        passed = False
        try:
            yield
            passed = True
        finally:
            for column, family in itertools.product(columns, families):
                made = self._passed.setdefault((topology.name, column.name, family), {})
                made[check] = passed

    def cells(self) -> Mapping[tuple[str, str], str]:
        """What the table says where all was looked at, by topology and column."""
        found: dict[tuple[str, str], dict[int, str]] = {}
        for (topology, column, family), made in self._passed.items():
            if "uninstall" in made:
                found.setdefault((topology, column), {})[family] = _verdict(made)
        return {key: _cell(verdicts) for key, verdicts in found.items()}

    def table(self) -> str:
        """The table. Raises KeyError when not all was looked at."""
        cells = self.cells()
        lines = [_line("beside", *(c.name for c in COLUMNS)), _line(*["---"] * (1 + len(COLUMNS)))]
        lines += (_line(t.name, *(cells[t.name, c.name] for c in COLUMNS)) for t in TOPOLOGIES)
        return "".join(lines)


def documented() -> Mapping[tuple[str, str], str]:
    """The cells of the table in the documents."""
    header, _, *lines = map(_split, _block(FILE.read_text()).splitlines())
    return {
        (name, column): cell
        for name, *cells in lines
        for column, cell in zip(header[1:], cells, strict=True)
    }


def write(table: str) -> None:
    """Put the table into the documents."""
    text = FILE.read_text()
    FILE.write_text(text.replace(_block(text), table))


def _block(text: str) -> str:
    return text.partition(_BEGIN)[2].partition(_END)[0]


def _cell(verdicts: Mapping[int, str]) -> str:
    """What is to be said of IPv4 and IPv6: once, if it is the same."""
    alike = set(verdicts.values())
    if len(alike) == 1:
        return alike.pop()
    return ", ".join(f"IPv{family} {verdict}" for family, verdict in sorted(verdicts.items()))


def _verdict(made: Mapping[str, bool]) -> str:
    failed = [check for check in _CHECKS if not made.get(check, True)]
    return f"✗ {', '.join(failed)}" if failed else "✓"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _split(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
