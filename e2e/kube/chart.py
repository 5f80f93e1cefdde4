"""
The chart, as tests and docs see it: what it renders, and what its values mean.

    python -m e2e.kube.chart       writes the table of values into docs/kubernetes.md
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import yaml

CHART: Final = Path(__file__).parents[2] / "helm"
PAGE: Final = CHART.parent / "docs/kubernetes.md"

NAMED: Final = {"cluster": {"name": "east", "id": 1}}
"""The two values that everybody has to give."""

_START: Final = "<!-- values: written by `python -m e2e.kube.chart` from helm/values.yaml -->\n"
_END: Final = "<!-- end of values -->\n"

Object: TypeAlias = dict[str, Any]
Values: TypeAlias = Mapping[str, Any]


class RenderError(Exception):
    """What helm says instead of manifests."""


def render(helm: Path, values: Values, *, namespace: str = "mesh") -> list[Object]:
    """
    The manifests that `helm template` makes.

    Raises:
        RenderError: it makes none.
    """
    return deepcopy(_render(helm, json.dumps(values), namespace))


@cache
def _render(helm: Path, values: str, namespace: str) -> list[Object]:
    """Many tests look at the same manifests, and helm and YAML take their time."""
    ran = subprocess.run(
        [helm, "template", "clustermesh", CHART, "--namespace", namespace, "--values", "-"],
        input=values,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode != 0:
        raise RenderError(ran.stderr)
    documents = yaml.load_all(ran.stdout, yaml.CSafeLoader)
    return [document for document in documents if document]


def find(objects: list[Object], kind: str, name: str) -> Object:
    """The object of that kind and name."""
    (found,) = (o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name))
    return found


class Value(NamedTuple):
    """A value of the chart that a user may set."""

    path: str
    default: str  # as JSON
    sentence: str  # empty: nobody wrote one


def values() -> Iterator[Value]:
    """
    Every value with its comment `# -- …`, in the order of the file.

    A group of values has no comment: it is none itself.
    """
    parents: list[tuple[int, str]] = []
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    sentence, inside = "", -1
    for line in (CHART / "values.yaml").read_text().splitlines():
        indent = len(line) - len(line.lstrip())
        if inside >= 0 and line.strip() and indent > inside:
            continue  # a part of the default of a value
        if found := re.match(r"\s*# -- (.*)", line):
            sentence, inside = found[1], -1
        elif found := re.match(r"\s*([\w.]+):(.*)", line):
            while parents and parents[-1][0] >= indent:
                parents.pop()
            parents.append((indent, found[1]))
            inside = indent if sentence else -1
            value: Any = defaults
            for _, key in parents:
                value = value[key]
            if sentence or not isinstance(value, dict):
                path = ".".join(key for _, key in parents)
                yield Value(path, json.dumps(value), sentence)
            sentence = ""


def table() -> str:
    """All values as Markdown."""
    rows = ["| value | default | |", "|---|---|---|"]
    for path, default, sentence in values():
        shown = default if len(default) <= 40 else "see values.yaml"
        cell = f"`{shown}`" if shown == default else shown
        rows.append(f"| `{path}` | {cell.replace('|', '&#124;')} | {sentence} |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """What docs/kubernetes.md should say."""
    text = PAGE.read_text()
    head, _, rest = text.partition(_START)
    _, _, tail = rest.partition(_END)
    return f"{head}{_START}{table()}{_END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(page())
