"""Packages of any release of Debian, downloaded without a word to the machine's own apt."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from clustermesh.sandbox.cache import UnavailableError, last_line, say

_KEYS: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SUITES: Final = {  # by the end of the archive's address
    "debian": ("bookworm", "trixie", "trixie-backports"),
    "debian-security": ("bookworm-security", "trixie-security"),
}


def download(name: str, directory: Path) -> list[Path]:
    """
    The newest packages whose names the regular expression `name` matches, all of one version.

    They are put into `directory`.

    Raises:
        UnavailableError: this is no Debian, there is no network, or no such package.
    """
    if shutil.which("apt-get") is None or not _KEYS.exists():
        raise UnavailableError("kernels are packages of Debian, and there is no apt-get here")
    with tempfile.TemporaryDirectory() as state:
        options = _own_state(Path(state))
        _run("apt-get", *options, "--error-on=any", "update")
        names = _run("apt-cache", *options, "pkgnames").split()
        found = [package for package in names if re.fullmatch(name, package)]
        if not found:
            raise UnavailableError(f"Debian has no package {name} any more, or not yet")
        newest = max(map(_version, found))
        wanted = [package for package in found if _version(package) == newest]
        say(f"downloading {' and '.join(wanted)}")
        _run("apt-get", *options, "download", *wanted, cwd=directory)
    return list(directory.glob("*.deb"))


def unpack(package: Path, directory: Path) -> None:
    """Unpack a package into `directory`."""
    subprocess.run(["dpkg-deb", "--extract", str(package), str(directory)], check=True)


def _own_state(directory: Path) -> list[str]:
    sources = directory / "sources.list"
    sources.write_text(
        "".join(
            f"deb [signed-by={_KEYS}] {archive} {suite} main\n"
            for archive in _archives()
            for suite in _SUITES[Path(archive).name]
        )
    )
    settings = {
        "APT::Sandbox::User": "root",  # the user _apt could not write here
        "Acquire::Languages": "none",
        "Dir::Cache": directory / "cache",
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": directory / "lists",
    }
    for place in ("cache/archives/partial", "lists/partial"):
        (directory / place).mkdir(parents=True)
    return [f"-o={name}={value}" for name, value in settings.items()]


def _archives() -> list[str]:
    """Where the machine's own apt gets its packages: a mirror has the other releases too."""
    lines = _run("apt-get", "indextargets", "--format", "$(REPO_URI)").split()
    found = sorted({line for line in lines if Path(line).name in _SUITES})
    if not found:
        raise UnavailableError("apt-get knows no archive of Debian here: is there a sources.list?")
    return found


def _version(package: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", package)]


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise UnavailableError(f"{command[0]}: {last_line(done.stderr)}")
    return done.stdout
