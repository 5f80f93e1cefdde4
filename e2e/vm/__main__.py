"""
Run tests on another kernel.

    python -m e2e.vm uml                          what is marked `vm`
    python -m e2e.vm 6.12 e2e/test_fast_path.py   whatever pytest takes
    python -m e2e.vm uml --make                   only have the kernel

What a failing test saves is in e2e/failures, as always. The exit code is pytest's; 69 when the
kernel cannot be had on this machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from clustermesh.errors import UserError
from clustermesh.sandbox.cache import UnavailableError

from . import qemu, uml
from .guest import Boot, GuestError, run

_FAILURES = Path(__file__).parents[1] / "failures"
_UML_PATIENCE = 2  # times as long for what the end-to-end tests wait for: it has one processor
_EMULATED_PATIENCE = 10  # all is 20 to 35 times slower: see qemu.py
_EMULATED_TIMEOUT = 850  # seconds for a test
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main(kernel: str, *arguments: str) -> int:
    """The exit code."""
    boot: Boot
    options: tuple[str, ...] = ()
    if kernel == "uml":
        boot = partial(uml.command, uml.make())
        patience = _UML_PATIENCE
    else:
        boot = partial(qemu.command, qemu.make(kernel))
        patience = _EMULATED_PATIENCE
        options = (f"--timeout={_EMULATED_TIMEOUT}",)
    if arguments == ("--make",):
        return 0
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        *options,
        *(arguments or ("-m", "vm")),
    ]
    return run(boot, pytest, _FAILURES, _environment(patience))


def _environment(patience: int) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("LANG", "TERM") if name in os.environ}
    columns = str(shutil.get_terminal_size().columns)
    plain = {} if sys.stdout.isatty() else {"NO_COLOR": "1"}
    patient = {"CLUSTERMESH_TEST_PATIENCE": str(patience)}
    return {"HOME": str(Path.home()), "PATH": _PATH, "COLUMNS": columns, **kept, **plain, **patient}


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except UnavailableError as error:
        print(error, file=sys.stderr)
        sys.exit(os.EX_UNAVAILABLE)
    except (GuestError, UserError) as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError:
        sys.exit("the build failed; see above")
