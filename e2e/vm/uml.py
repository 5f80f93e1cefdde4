"""
User Mode Linux: a kernel that is a program. It boots in a second, and Python is as fast as outside.

It is built from the newest sources that Debian has: since 7.0 it has two processors, and a fast way
to run processes. There is neither a JIT for BPF nor BTF nor tracing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from clustermesh.errors import UserError
from clustermesh.sandbox import cache
from clustermesh.sandbox.cache import UnavailableError

from . import debian

_CONFIG: Final = Path(__file__).with_name("uml.config")
_SOURCE: Final = r"linux-source-\d+\.\d+"
_TOOLS: Final = ("gcc", "make", "flex", "bison", "m4", "bc", "xz")
_UNUSED: Final = ("Documentation/*.rst", "drivers/gpu/*.[ch]", "tools/testing", "arch/*/boot/dts")
_MEMORY: Final = "4G"  # taken by use


def make() -> Path:
    """
    The program, built unless it is there. Another configuration makes another one.

    Raises:
        UnavailableError: there is no source to be had, or nothing to build it with.
        UserError: the source does not know a line of the configuration.
        subprocess.CalledProcessError: the build failed; what it said has been printed.
    """
    digest = hashlib.sha256(_CONFIG.read_bytes()).hexdigest()[:8]
    return cache.made(f"user-mode-linux-{digest}", _build) / "linux"


def command(program: Path, shared: Path, arguments: Sequence[str]) -> list[str]:
    """What boots it, with `arguments` for the kernel; see guest.py."""
    return [
        str(program),
        *(f"mem={_MEMORY}", "ncpus=2", "seccomp=on"),
        *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"),
        *("con=null", "con0=null,fd:1"),
        f'share="none -t hostfs -o {shared}"',
        *arguments,
    ]


def _build(directory: Path) -> None:
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise UnavailableError(f"User Mode Linux is built with {', '.join(missing)}: install them")
    (package,) = debian.download(_SOURCE, directory)
    name = package.name.partition("_")[0]
    source = directory / "source"
    _unpack(package, source)
    _make(source, f"KCONFIG_ALLCONFIG={_CONFIG}", "allnoconfig")
    lacking = _wanted() - set((source / ".config").read_text().splitlines())
    if lacking:
        raise UserError(f"{name} cannot be configured with {', '.join(sorted(lacking))}")
    cache.say(f"building User Mode Linux from {name}: five to ten minutes, once")
    _make(source, f"-j{os.cpu_count()}")
    shutil.copy(source / "linux", directory)
    shutil.rmtree(source)
    package.unlink()


def _unpack(package: Path, source: Path) -> None:
    """Unpack the archive in the package, but for what no build of ours reads."""
    unpacked = package.with_suffix("")
    debian.unpack(package, unpacked)
    (archive,) = unpacked.glob("usr/src/*.tar.xz")
    source.mkdir()
    unused = (f"--exclude=*/{pattern}" for pattern in _UNUSED)
    where = (f"--directory={source}", "--strip-components=1")
    subprocess.run(["tar", "--extract", f"--file={archive}", *where, *unused], check=True)
    shutil.rmtree(unpacked)


def _wanted() -> set[str]:
    return {line for line in _CONFIG.read_text().splitlines() if line.startswith("CONFIG_")}


def _make(source: Path, *arguments: str) -> None:
    command = ["make", "ARCH=um", *arguments]
    progress = cache.Progress("of about 1500 files")
    lines: list[str] = []
    with subprocess.Popen(
        command, cwd=source, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as making:
        for line in _lines(making):
            lines.append(line)
            progress.step()
    if making.returncode != 0:
        sys.stderr.writelines(["\n", *lines[-20:]])
        raise subprocess.CalledProcessError(making.returncode, command)


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout)
