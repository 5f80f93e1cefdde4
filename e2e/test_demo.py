from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from clustermesh.sandbox import remains


@pytest.fixture
def name(sandbox_name: Callable[[str], str]) -> Iterator[str]:
    made = sandbox_name("demo")
    yield made
    remains.down(made)


def test_the_demo_keeps_its_promises_and_says_how_to_look_around(name: str) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "clustermesh.sandbox.demo", "--name", name],
        check=False,  # what it said is more telling than a code
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    steps = re.findall(r"^(\d)  \S", said.stdout, re.MULTILINE)
    assert steps == ["1", "2", "3", "4", "5", "6", "7"]
    assert f"sandbox down --name {name}" in said.stdout
    assert not [line for line in said.stdout.splitlines() if len(line) > 200]


def test_the_demo_fails_when_there_cannot_be_a_sandbox() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "clustermesh.sandbox.demo", "--name", "No"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert said.returncode == 1
    assert "error: 'No' is no name for a sandbox" in said.stdout
