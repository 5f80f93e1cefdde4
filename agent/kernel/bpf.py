"""
BPF objects, maps and pins: libbpf with types. Knows nothing of what they are for.

Whatever the kernel refuses is an OSError with its errno. Calls that move many rows release the
interpreter lock, so run them in a thread.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from agent.kernel._libbpf import ffi, lib

_READ_AT_ONCE: Final = 16384
"""Rows to a batch when reading: more than a hash bucket ever holds, or the kernel says ENOSPC."""

_REFILLS: Final = 50
_REFILL_SECONDS: Final = 0.002
"""How often, and how long after, a row is tried again for which the kernel has no memory at hand:
since 6.14 a trie takes its nodes from a small store that is refilled by an interrupt, and a batch
can be faster than that."""

_LOG_LINES: Final = 3


class Map:
    """A map in the kernel. Keys and values are bytes, in the layout of its C types."""

    def __init__(self, fd: int) -> None:
        """Own `fd`."""
        self.fd = fd
        info = ffi.new("struct bpf_map_info *")
        check(lib.cm_map_info(fd, info), "map info")
        self.name: str = ffi.string(info.name).decode()
        self.type: int = info.type
        self.key_size: int = info.key_size
        self.value_size: int = info.value_size
        self.max_entries: int = info.max_entries
        self._is_per_cpu = self.type == lib.BPF_MAP_TYPE_PERCPU_ARRAY

    @classmethod
    def pinned(cls, path: Path, *, read_only: bool = False) -> Map:
        """
        Open the map that is pinned at `path`.

        Raises:
            OSError: ENOENT without a pin there.
        """
        return cls(open_pin(path, read_only=read_only))

    def get(self, key: bytes) -> bytes | None:
        """
        The value of `key`, or None.

        In a per-CPU map the values of all possible CPUs in a row, each padded to 8 bytes.
        """
        size = self.value_size
        if self._is_per_cpu:
            size = -(-size // 8) * 8 * lib.libbpf_num_possible_cpus()
        value = ffi.new("char[]", size)
        error = lib.bpf_map_lookup_elem(self.fd, ffi.from_buffer(key), value)
        if error == -errno.ENOENT:
            return None
        check(error, f"{self.name}: lookup")
        return bytes(ffi.buffer(value, size))

    def read(self) -> tuple[bytes, bytes]:
        """All keys and all values, each concatenated. Not for per-CPU maps."""
        keys, values = bytearray(), bytearray()
        key_buffer = ffi.new("char[]", _READ_AT_ONCE * self.key_size)
        value_buffer = ffi.new("char[]", _READ_AT_ONCE * self.value_size)
        position = ffi.new("char[]", max(self.key_size, 4))  # a key, or in a hash a u32
        count = ffi.new("uint32_t *")
        start: Any = ffi.NULL
        while True:
            count[0] = _READ_AT_ONCE
            error = lib.bpf_map_lookup_batch(
                self.fd, start, position, key_buffer, value_buffer, count, ffi.NULL
            )
            if error and error != -errno.ENOENT:
                fail(-error, f"{self.name}: read")
            keys += ffi.buffer(key_buffer, count[0] * self.key_size)
            values += ffi.buffer(value_buffer, count[0] * self.value_size)
            if error:  # ENOENT: that was the end
                return bytes(keys), bytes(values)
            start = position

    def update(self, keys: bytes, values: bytes) -> dict[int, OSError]:
        """
        Set many rows, in order; what failed, by row number. The others are set all the same.

        A full map is ENOSPC.
        """
        size, failed = self.key_size, {}
        total, done = len(keys) // size, 0
        key_buffer, value_buffer = ffi.from_buffer(keys), ffi.from_buffer(values)
        count = ffi.new("uint32_t *")
        refills = 0
        while done < total:
            count[0] = total - done
            error = lib.bpf_map_update_batch(
                self.fd,
                key_buffer + done * size,
                value_buffer + done * self.value_size,
                count,
                ffi.NULL,
            )
            done += count[0]
            refills = 0 if count[0] else refills
            if error == -errno.ENOMEM and refills < _REFILLS:
                refills += 1
                time.sleep(_REFILL_SECONDS)
            elif error:
                failed[done] = self._update_error(-error)
                done += 1
        return failed

    def _update_error(self, number: int) -> OSError:
        if number in {errno.E2BIG, errno.ENOSPC}:  # a hash says the former, a trie the latter
            return OSError(errno.ENOSPC, f"{self.name}: all {self.max_entries} rows are taken")
        return _os_error(number, f"{self.name}: update")

    def delete(self, keys: bytes) -> dict[int, OSError]:
        """Delete many rows; what failed, by row number. A row that is not there is no failure."""
        size, failed = self.key_size, {}
        total, done = len(keys) // size, 0
        key_buffer = ffi.from_buffer(keys)
        count = ffi.new("uint32_t *")
        while done < total:
            count[0] = total - done
            error = lib.bpf_map_delete_batch(self.fd, key_buffer + done * size, count, ffi.NULL)
            done += count[0]
            if error:
                if error != -errno.ENOENT:
                    failed[done] = _os_error(-error, f"{self.name}: delete")
                done += 1
        return failed

    def close(self) -> None:
        """Let go; a pin or a program keeps the map alive."""
        os.close(self.fd)


class Object:
    """An object file, loaded into the kernel: its maps and programs live at least as long as it."""

    def __init__(
        self,
        path: Path,
        pin_root: Path,
        *,
        settings: Mapping[str, bytes],
        max_entries: Mapping[str, int],
    ) -> None:
        """
        Load `path`. Its maps are taken from `pin_root`, or created and pinned there.

        Args:
            settings: the `const volatile` variables, each as bytes of its size.
            max_entries: sizes of maps that differ from the object's.

        Raises:
            OSError: with the last lines of libbpf and of the verifier. EINVAL when a pinned map is
                not as the object wants it.
        """
        lib.cm_log_start()
        self._object = lib.cm_object_open(os.fsencode(path), os.fsencode(pin_root))
        if not self._object:
            fail(ffi.errno, f"{path.name}: open: {_log_end()}")
        try:
            self._configure(path, settings, max_entries)
            error = lib.bpf_object__load(self._object)
            if error:
                fail(-error, f"{path.name}: load: {_log_end()}")
        except OSError:
            self.close()
            raise
        finally:
            _log_end()

    def _configure(
        self, path: Path, settings: Mapping[str, bytes], max_entries: Mapping[str, int]
    ) -> None:
        for name, value in settings.items():
            error = lib.cm_object_set(self._object, name.encode(), value, len(value))
            check(error, f"{path.name}: setting {name}")
        for name, size in max_entries.items():
            found = lib.bpf_object__find_map_by_name(self._object, name.encode())
            if found:
                check(lib.bpf_map__set_max_entries(found, size), f"{path.name}: size of {name}")

    def map(self, name: str) -> Map:
        """A map of the object, with a file descriptor of its own."""
        found = lib.bpf_object__find_map_by_name(self._object, name.encode())
        return Map(os.dup(lib.bpf_map__fd(found)))

    def program(self, name: str) -> int:
        """The file descriptor of a program, which stays the object's."""
        found = lib.bpf_object__find_program_by_name(self._object, name.encode())
        if not found:
            fail(errno.ENOENT, f"program {name}")
        return int(lib.bpf_program__fd(found))

    def close(self) -> None:
        """Let go; links keep their programs alive, pins and programs their maps."""
        lib.bpf_object__close(self._object)


def open_pin(path: Path, *, read_only: bool = False) -> int:
    """A new file descriptor of what is pinned at `path`."""
    flags = lib.BPF_F_RDONLY if read_only else 0
    return check(lib.cm_object_get(os.fsencode(path), flags), str(path))


def pin_at(fd: int, path: Path) -> None:
    """Pin a map, program or link; the directory must be on a bpffs. No dots in the name."""
    check(lib.bpf_obj_pin(fd, os.fsencode(path)), str(path))


def is_bpffs(path: Path) -> bool:
    """
    Whether `path` is on a BPF file system.

    Raises:
        OSError: it does not exist, or is out of reach.
    """
    return bool(check(lib.cm_is_bpffs(os.fsencode(path)), str(path)))


def has_set_retval() -> bool:
    """Whether a program can choose the error that a refused socket call gives (Linux 5.18)."""
    found = lib.libbpf_probe_bpf_helper(
        lib.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, lib.BPF_FUNC_set_retval, ffi.NULL
    )
    return bool(found == 1)


def _log_end() -> str:
    """The last lines that libbpf said: those of the verifier, when that is what failed."""
    text = ffi.string(lib.cm_log_end()).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    noise = ("-- BEGIN", "-- END", "processed ", "libbpf: failed to load object")
    return "; ".join([line for line in lines if not line.startswith(noise)][-_LOG_LINES:])


def check(result: int, what: str) -> int:
    """Pass on what libbpf returned, unless that is an error; say `what` failed."""
    if result < 0:
        fail(-result, what)
    return result


def fail(number: int, what: str) -> NoReturn:
    """Raise the OSError of `number`."""
    raise _os_error(number, what)


def _os_error(number: int, what: str) -> OSError:
    return OSError(number, f"{what}: {os.strerror(number)}")
