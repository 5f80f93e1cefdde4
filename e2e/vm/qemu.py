"""
A stock kernel of Debian, in a machine that QEMU emulates: no hardware helps, all is 20 to 35 times
slower. The kernels are those of the cloud images: small, and with every network module there is.
"""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from clustermesh.errors import UserError
from clustermesh.sandbox import cache
from clustermesh.sandbox.cache import UnavailableError

from . import debian

_HERE: Final = Path(__file__).parent
_EMULATOR: Final = "qemu-system-x86_64"
_BUSYBOX: Final = "/bin/busybox"
_NEEDED: Final = (_EMULATOR, "/usr/lib/qemu/virtiofsd", _BUSYBOX, "cpio", "depmod")
_MEMORY: Final = "3G"
_EARLY_MODULES: Final = ("virtio_pci", "virtiofs", "overlay")  # before there are files


def make(version: str) -> Path:
    """
    The directory of Linux `version` (6.12, say), downloaded unless it is there.

    Raises:
        UserError: that is no version.
        UnavailableError: Debian does not have it, or a program to run it with is not installed.
    """
    if not re.fullmatch(r"\d+\.\d+", version):
        raise UserError(f"there is no kernel {version}", hint="uml, or one of Debian: 6.1, 6.12")
    missing = [program for program in _NEEDED if shutil.which(program) is None]
    if missing:
        raise UnavailableError(f"a stock kernel is run with {', '.join(missing)}: install them")
    return cache.made(f"linux-{version}", lambda directory: _fill(directory, version))


def command(kernel: Path, shared: Path, arguments: Sequence[str]) -> list[str]:
    """What boots it, with `arguments` for the kernel; see guest.py."""
    own = ("console=ttyS0", "no_timer_check", "mitigations=off", f"modules={kernel}/lib/modules")
    share = f'share="--bind /mnt{shared}"'  # the files as they are, which init puts there
    return [
        *("unshare", "--mount", str(_HERE / "files.sh"), str(shared)),
        *(_EMULATOR, "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"),
        # QEMU 7.2 corrupts flags in cmpxchg16b; 5 levels of page tables only take time.
        *("-accel", "tcg,thread=multi", "-cpu", "max,la57=off,-cx16", "-smp", "2", "-m", _MEMORY),
        *("-object", f"memory-backend-memfd,id=memory,size={_MEMORY},share=on"),
        *("-numa", "node,memdev=memory"),
        *("-chardev", "socket,id=files,path=/mnt/files"),
        *("-device", "vhost-user-fs-pci,chardev=files,tag=root"),
        *("-kernel", str(kernel / "vmlinuz"), "-initrd", str(kernel / "initramfs")),
        *("-append", " ".join([*own, share, *arguments])),
    ]


def _fill(directory: Path, version: str) -> None:
    # Since 7.0 the image is a package of nothing but dependencies on the two others.
    name = rf"linux-(image|binary|modules)-{version}\.\d[^-]*(-\d+)?-cloud-amd64"
    unpacked = directory / "unpacked"
    for package in debian.download(name, directory):
        debian.unpack(package, unpacked)
        package.unlink()
    (kernel,) = unpacked.glob("**/vmlinuz*")
    kernel.rename(directory / "vmlinuz")
    (builtin,) = unpacked.glob("**/modules.builtin")
    release = builtin.parent.name
    (directory / "lib/modules").mkdir(parents=True)
    builtin.parent.rename(directory / "lib/modules" / release)
    shutil.rmtree(unpacked)
    subprocess.run(["depmod", "--basedir", str(directory), release], check=True)
    _make_initramfs(directory, release)


def _make_initramfs(directory: Path, release: str) -> None:
    tree = directory / "tree"
    for name in ("bin", "proc", "root", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy(_BUSYBOX, tree / "bin")
    shutil.copy(_HERE / "initramfs.sh", tree / "init")
    for number, module in enumerate(_early_modules(directory, release)):
        content = module.read_bytes()
        if module.suffix == ".xz":  # which busybox does not unpack
            content = lzma.decompress(content)
        (tree / f"modules/{number:02}-{module.name}").write_bytes(content)
    names = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
    with (directory / "initramfs").open("wb") as file:
        cpio = ["cpio", "--create", "--quiet", "--format=newc"]
        subprocess.run(cpio, check=True, cwd=tree, input=names.encode(), stdout=file)
    shutil.rmtree(tree)


def _early_modules(directory: Path, release: str) -> Iterator[Path]:
    """The modules without which there are no files, each after those that it needs."""
    seen = set()
    for name in _EARLY_MODULES:
        command = ["modprobe", "--show-depends", "-d", str(directory), "-S", release, name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for line in said.splitlines():
            what, _, path = line.strip().partition(" ")
            if what == "insmod" and path not in seen:  # else it is built in
                seen.add(path)
                yield Path(path.split()[0])
