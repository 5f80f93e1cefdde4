from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from importlib.metadata import version
from typing import Any, Final, Protocol, TypeVar

from clustermesh.errors import UserError
from clustermesh.settings import parse_address, read_settings

from .daemon import Daemon
from .logs import configure_logging
from .serve import serve

log = logging.getLogger(__name__)

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Settings(Protocol):
    """What this file wants of a daemon's settings."""

    @property
    def listen(self) -> str:
        """See `parse_address`."""

    @property
    def log_level(self) -> str:
        """See `configure_logging`."""

    @property
    def log_format(self) -> str:
        """See `configure_logging`."""


S = TypeVar("S", bound=Settings)


def run(
    name: str,
    kind: type[S],
    main: Callable[[S, Daemon], Coroutine[Any, Any, None]],
    *,
    arguments: Sequence[str] | None = None,
) -> int:
    """
    Be the daemon `name` until it is told to stop, and return the exit code.

    The HTTP server answers before `main` is called and until it has returned. SIGTERM and SIGINT
    cancel `main`, which keeps all state; a second one kills at once. A UserError that `main` raises
    becomes one line on stderr and 1; one about the settings, 2.

    Args:
        kind: the dataclass of its settings, see `read_settings`.
        arguments: the command line without the program; None means the process's own.

    Raises:
        Exception: a bug, which is for the interpreter to print.
    """
    program = f"clustermesh-{name}"
    release = version("clustermesh-controller")
    try:
        settings = read_settings(kind, name=program, version=release, arguments=arguments)
    except UserError as error:
        sys.stderr.write(f"{program}: {error}\n")
        return 2
    configure_logging(settings.log_level, settings.log_format)
    code = 0
    try:
        asyncio.run(_run(settings, main, Daemon(name, release)))
    except* UserError as errors:
        for leaf in _leaves(errors):
            sys.stderr.write(f"{program}: {leaf}\n")
        code = 1
    return code


async def _run(
    settings: S, main: Callable[[S, Daemon], Coroutine[Any, Any, None]], daemon: Daemon
) -> None:
    loop = asyncio.get_running_loop()
    async with serve(daemon, parse_address(settings.listen)) as address:
        log.info("%s %s answers on %s", daemon.name, daemon.version, address)
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(main(settings, daemon), name=daemon.name)

            def stop(number: signal.Signals) -> None:
                log.info("%s: stopping, all state is kept", number.name)
                for other in _SIGNALS:
                    loop.remove_signal_handler(other)
                work.cancel()

            for number in _SIGNALS:
                loop.add_signal_handler(number, stop, number)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
