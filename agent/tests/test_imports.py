"""What a node with an agent does not pay for: libraries that an agent at work has no use for."""

from __future__ import annotations

import subprocess
import sys

_UNUSED = ("clustermesh.kube", "cryptography", "pyroute2.ndb", "rich", "sqlite3")


def test_an_agent_imports_no_library_that_it_uses_only_in_trouble_or_never() -> None:
    assert _run(f"import agent.main, sys; print(*sys.modules.keys() & set({_UNUSED}))") == ""


def test_all_of_pyroute2_is_there_for_whoever_imports_it_after_the_agent() -> None:
    code = "import agent.kernel.pyroute, pyroute2; print(pyroute2.NDB.__name__)"
    assert _run(code) == "NDB"


def _run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
