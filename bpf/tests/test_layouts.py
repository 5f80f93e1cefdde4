"""The Python twins against the BTF of what is loaded into the kernel."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from agent.kernel import datapath
from agent.kernel.layouts import LAYOUTS, Direction, DropReason, Layout, Medium


@cache
def btf_types() -> list[dict[str, Any]]:
    """Every type of every object."""
    bpftool = shutil.which("bpftool", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if bpftool is None:
        pytest.skip("bpftool is not installed")
    objects = sorted(Path(datapath.__file__).with_name("objects").glob("*.bpf.o"))
    assert objects
    found = []
    for path in objects:
        done = subprocess.run(
            [bpftool, "-j", "btf", "dump", "file", str(path)], check=True, capture_output=True
        )
        found += json.loads(done.stdout)["types"]
    return found


def named(kind: str, name: str) -> dict[str, Any]:
    """The type of that name, which is the same in every object that has it."""
    found = [t for t in btf_types() if t["kind"] == kind and t["name"] == name]
    assert found, f"no {kind} {name}"
    shapes = {str([(m["name"], m.get("bits_offset")) for m in _parts(t)]) for t in found}
    assert len(shapes) == 1
    return found[0]


def _parts(type_: dict[str, Any]) -> list[dict[str, Any]]:
    return list(type_.get("members") or type_["values"])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_each_twin_has_the_fields_offsets_and_size_of_its_struct(layout: Layout) -> None:
    wanted = named("STRUCT", layout.name)

    formats = list(layout.fields.values())
    offsets = [struct.calcsize("=" + "".join(formats[:n])) for n in range(len(formats))]
    assert dict(zip(layout.fields, offsets, strict=True)) == {
        member["name"]: member["bits_offset"] // 8 for member in wanted["members"]
    }
    assert layout.size == wanted["size"]


@pytest.mark.parametrize(
    ("name", "prefix", "twin"),
    [
        ("drop_reason", "DROP_", DropReason),
        ("direction", "DIRECTION_", Direction),
        ("medium", "MEDIUM_", Medium),
    ],
)
def test_each_enum_has_the_same_names_and_numbers(
    name: str, prefix: str, twin: type[IntEnum]
) -> None:
    values = {value["name"]: value["val"] for value in named("ENUM", name)["values"]}
    values.pop("DIRECTION_COUNT", None)
    assert values == {prefix + member.name: member.value for member in twin}


def test_every_struct_that_a_map_holds_has_a_twin() -> None:
    header = Path(__file__).parents[1].joinpath("lib/types.h").read_text()
    structs = {line.split()[1] for line in header.splitlines() if line.startswith("struct ")}
    assert structs == {layout.name for layout in LAYOUTS}
