"""A module of the bench that runs in User Mode Linux: for what the machine's own kernel lacks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

from e2e.vm import guest, uml

_SHARED: Final = Path(__file__).parents[1] / "failures" / "bench"  # the guest may write there


def run_in_guest(module: str, *arguments: object) -> bytes:
    """
    What `python -m e2e.bench.MODULE FILE …` has written into FILE.

    Raises:
        UnavailableError: there is no such kernel to be had on this machine.
        subprocess.CalledProcessError: it failed; what it said has been printed.
    """
    program = uml.make()
    _SHARED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_SHARED) as directory:
        file = Path(directory) / "found.json"
        command = [sys.executable, "-m", f"e2e.bench.{module}", str(file), *map(str, arguments)]
        environment = {name: os.environ[name] for name in ("HOME", "PATH")}
        if code := guest.run(partial(uml.command, program), command, _SHARED, environment):
            raise subprocess.CalledProcessError(code, command)
        return file.read_bytes()
