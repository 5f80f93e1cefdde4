"""What a node with an agent does not pay for: libraries that an agent at work has no use for."""

from __future__ import annotations

import subprocess
import sys

import pytest

_UNUSED = (
    "aiohttp.client",
    "argparse",
    "clustermesh.kube",
    "cryptography",
    "http.server",
    "multiprocessing",
    "pyroute2.ndb",
    "rich",
    "sqlite3",
    "unittest",
    "wsgiref",
)


def test_an_agent_imports_no_library_that_it_uses_only_in_trouble_or_never() -> None:
    assert _run(f"import agent.main, sys; print(*sys.modules.keys() & set({_UNUSED}))") == ""


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("aiohttp", "ClientSession"),
        ("argparse", "ArgumentParser"),
        ("http.server", "HTTPServer"),
        ("multiprocessing", "Pipe"),
        ("pyroute2", "NDB"),
        ("unittest.mock", "Mock"),
    ],
)
def test_whoever_imports_it_after_the_agent_gets_the_real_library(module: str, name: str) -> None:
    code = f"import agent.main; from {module} import {name}; print({name}.__module__.split('.')[0])"
    assert _run(code) == module.split(".", maxsplit=1)[0]


def _run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
