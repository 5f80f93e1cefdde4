"""
Build what is not Python: the BPF objects, the binding to libbpf, the etcd message classes.

Runs as a hatchling hook when a wheel or an editable install is made, and by hand as
`python hatch_build.py` after a change to the C sources. Everything is built in place, and only
when a source is newer than what it makes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand, outside a build environment
    BuildHookInterface = object  # type: ignore[assignment,misc]

ROOT = Path(__file__).resolve().parent
OBJECTS = ROOT / "agent/kernel/objects"


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling finds this class by being the only hook in the file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build in place and mark the wheel as one for this platform."""
        del version
        build()
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def build() -> None:
    """Bring everything up to date."""
    build_bpf()
    build_libbpf_binding()
    build_etcd_messages()


def build_bpf() -> None:
    """`bpf/NAME.bpf.c` becomes `agent/kernel/objects/NAME.bpf.o`, with BTF."""
    clang = shutil.which("clang") or sys.exit("clang is missing: apt-get install clang")
    triple = subprocess.run(
        ["gcc", "-dumpmachine"], check=True, capture_output=True, text=True
    ).stdout.strip()
    headers = list((ROOT / "bpf/lib").glob("*.h"))
    OBJECTS.mkdir(exist_ok=True)
    for source in sorted((ROOT / "bpf").glob("*.bpf.c")):
        target = OBJECTS / f"{source.name.removesuffix('.c')}.o"
        if is_newer(target, [source, *headers]):
            continue
        print(f"clang {target.relative_to(ROOT)}", flush=True)
        flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror"]
        include = ["-I", str(ROOT / "bpf/lib"), "-idirafter", f"/usr/include/{triple}"]
        subprocess.run([clang, *flags, *include, "-c", str(source), "-o", str(target)], check=True)


def build_libbpf_binding() -> None:
    """Compile `agent/kernel/_libbpf_build.py` with cffi in API mode."""
    source = ROOT / "agent/kernel/_libbpf_build.py"
    built = list(source.parent.glob("_libbpf.*.so"))
    if built and is_newer(built[0], [source]):
        return
    print("cffi agent/kernel/_libbpf", flush=True)
    namespace: dict[str, Any] = {}
    exec(compile(source.read_text(), str(source), "exec"), namespace)  # noqa: S102 - our own file
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(namespace["ffibuilder"].compile(tmpdir=scratch))
        for stale in built:
            stale.unlink()
        shutil.copy(made, source.parent / made.name)


def build_etcd_messages() -> None:
    """Generate the protobuf classes (and their types) of the part of etcd's API that we use."""
    source = ROOT / "clustermesh/etcd/rpc.proto"
    target = source.with_name("rpc_pb2.py")
    if is_newer(target, [source]):
        return
    from grpc_tools import protoc  # noqa: PLC0415 - needed at build time only

    print(f"protoc {target.relative_to(ROOT)}", flush=True)
    arguments = [f"-I{ROOT}", f"--python_out={ROOT}", f"--pyi_out={ROOT}", str(source)]
    if protoc.main(["protoc", *arguments]) != 0:
        sys.exit("protoc failed")


def is_newer(target: Path, sources: Iterable[Path]) -> bool:
    """Whether `target` is there and no source was changed after it."""
    made = target.stat().st_mtime if target.exists() else 0.0
    return all(source.stat().st_mtime <= made for source in sources)


if __name__ == "__main__":
    build()
