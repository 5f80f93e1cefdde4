from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .tutorial import follow, shape


@pytest.mark.timeout(300)
def test_the_tutorial_works_as_it_is_written(
    sandbox_name: Callable[[str], str], tmp_path: Path
) -> None:
    follow("tutorial.md", sandbox_name("tutorial"), tmp_path)


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("   21 by cluster1/node1/pod1", "    9 by cluster1/node1/pod1"),
        ("(2.5 s)", "(12.0 s)"),
        ("Running   0          21s", "Running   0          2m2s"),
    ],
)
def test_shapes_do_not_depend_on_numbers(line: str, other: str) -> None:
    assert shape((line,)) == shape((other,))
