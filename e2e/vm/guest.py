"""
A guest: another kernel, booted on the files of this machine to run one command.

What it writes stays in its memory, but for the shared directory. Its console is shown from the
moment on at which its init is done; when it dies without an answer, all of it.
"""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, TypeAlias

Boot: TypeAlias = Callable[[Path, Sequence[str]], list[str]]
"""The command that boots a kernel with these arguments. It gives the guest the directory to write
to, and the argument `share` that says how init is to mount that."""

_INIT: Final = Path(__file__).with_name("init")
_UP: Final = b"--- guest is up ---\n"
_SILENCE: Final = 900.0  # seconds: longer than any test may take


class GuestError(Exception):
    """The guest has ended without an answer, or will never have one."""


def run(boot: Boot, command: Sequence[str], shared: Path, environment: Mapping[str, str]) -> int:
    """
    Run `command` in a guest, in this directory, and return its exit code.

    Args:
        shared: an absolute path, the same inside and outside; what is written there stays.

    Raises:
        GuestError: the kernel did not boot or did not survive.
    """
    shared.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix=".guest-", dir=shared))
    try:
        _write_script(home / "run", command, environment)
        variables = {"home": home, "shared": shared, "python": sys.executable}
        arguments = [f"{name}={value}" for name, value in variables.items()]
        # Nothing but what is fatal; and a panic ends the machine.
        _watch(boot(shared, [f"init={_INIT}", "loglevel=0", "panic=-1", *arguments]))
        return int((home / "exit").read_text())
    except FileNotFoundError:
        raise GuestError("the guest has ended before its command has") from None
    finally:
        shutil.rmtree(home)


def _write_script(path: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines = ("#!/bin/sh", f"cd {shlex.quote(str(Path.cwd()))}", *exports, shlex.join(command), "")
    path.write_text("\n".join(lines))
    path.chmod(0o755)


def _watch(command: Sequence[str]) -> None:
    """Show what the guest says until it ends."""
    guest = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # QEMU wants one that stays open
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        start_new_session=True,
    )
    assert guest.stdout is not None
    try:
        unseen: bytes | None = b""
        while said := _read(guest.stdout):
            if unseen is not None:
                before, up, said = (unseen + said).partition(_UP)
                unseen = None if up else before
            sys.stdout.buffer.write(said)
            sys.stdout.flush()
        guest.wait()
        if unseen is not None:
            raise GuestError(f"the guest is not up:\n{unseen.decode(errors='replace')}")
    finally:
        if guest.poll() is None:
            os.killpg(guest.pid, signal.SIGKILL)
            guest.wait()


def _read(pipe: IO[bytes]) -> bytes:
    """What comes next; nothing at the end."""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        if not selector.select(_SILENCE):
            raise GuestError(f"the guest has said nothing for {_SILENCE:g} s")
    return os.read(pipe.fileno(), 1 << 16)
