"""
Processes in a sandbox: started inside a namespace and a cgroup, and found again by another command.

A process is named by its pid and the time it was started, which no other process ever shares, and
it is signalled through a pidfd that was checked against both: a pid that the kernel has given to
somebody else in the meantime is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

# Joins the cgroup, then the namespace, then becomes the command: a socket keeps the cgroup that it
# was created in. A shell and nsenter do that without running Python between fork and exec.
_JOIN: Final = 'echo 0 > "$0/cgroup.procs" && net=$1 && shift && exec nsenter --net="$net" -- "$@"'


class Process(msgspec.Struct, frozen=True):
    """A process that was started, and may have ended."""

    pid: int
    started: int  # clock ticks after the machine's start, /proc/PID/stat field 22


def inside(namespace: Path, cgroup: Path, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in a network namespace and a cgroup."""
    return ["sh", "-c", _JOIN, str(cgroup), str(namespace), *command]


def start(
    command: Sequence[str],
    *,
    namespace: Path,
    cgroup: Path,
    log: Path,
    pid_file: Path,
    environment: Mapping[str, str] | None = None,
) -> Process:
    """
    Start `command`, with its output appended to `log`. It lives on when the caller ends.

    Args:
        environment: on top of the caller's.

    Raises:
        OSError: it could not even be started. What it does afterwards is in the log.
    """
    pid = os.posix_spawnp(
        "sh",
        inside(namespace, cgroup, command),
        {**os.environ, **(environment or {})},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGPIPE),
    )
    process = Process(pid, _started(pid) or 0)
    written = pid_file.with_suffix(".new")
    written.write_text(f"{process.pid} {process.started}\n")
    written.rename(pid_file)
    return process


def read(pid_file: Path) -> Process | None:
    """The process that `pid_file` names, if it is running."""
    try:
        pid, started = map(int, pid_file.read_text().split())
    except (FileNotFoundError, ValueError):
        return None
    process = Process(pid, started)
    return process if is_running(process) else None


def is_running(process: Process) -> bool:
    """Whether it has not ended. One that has, and that nobody has waited for, has ended."""
    return _started(process.pid) == process.started


def is_bound(process: Process, port: int) -> bool:
    """Whether there is a UDP socket on `port` in the process's network namespace."""
    try:
        sockets = Path(f"/proc/{process.pid}/net/udp6").read_text().splitlines()[1:]
    except OSError:  # it has ended
        return False
    return any(line.split()[1].endswith(f":{port:04X}") for line in sockets)


def stop(
    process: Process, number: signal.Signals = signal.SIGTERM, *, timeout: float = 10.0
) -> None:
    """
    Send a signal and wait until the process has ended. Not an error if it had.

    Raises:
        TimeoutError: it has not ended after `timeout` seconds.
    """
    with _opened(process) as pidfd:
        if pidfd is not None:
            signal.pidfd_send_signal(pidfd, number)
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            if not ended.poll(timeout * 1000):
                what = f"process {process.pid} ignores {number.name} for {timeout:g} s"
                raise TimeoutError(errno.ETIMEDOUT, what)
    with contextlib.suppress(ChildProcessError):  # not ours to wait for
        os.waitpid(process.pid, os.WNOHANG)


@contextlib.contextmanager
def _opened(process: Process) -> Iterator[int | None]:
    """A pidfd, for as long as it certainly is that process."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield pidfd if is_running(process) else None
    finally:
        os.close(pidfd)


def _started(pid: int) -> int | None:
    """When a process was started; None if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in {"Z", "X"} else int(fields[18])
