"""
pyroute2's rtnetlink, and nothing else of it, for several tasks at once.

What its `__init__` imports, databases and a dozen other families among it, costs every node 5 MB.
So the submodules are imported beside a bare package. Whoever imports pyroute2 itself, in the same
process, still gets all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from typing import Any, Final

from clustermesh.imports import bare_package, hollow

with bare_package("pyroute2"), hollow("multiprocessing", "unittest", "unittest.mock"):
    from pyroute2.iproute.linux import AsyncIPRoute
    from pyroute2.netlink.exceptions import NetlinkError

from .route_messages import NLM_F_DUMP_INTR

__all__ = ["NetlinkError", "Rtnetlink", "oserrors"]

_DUMP_TRIES: Final = 10


class Rtnetlink(AsyncIPRoute):  # type: ignore[misc]  # pyroute2 has no types
    """One rtnetlink socket that the tasks of an event loop share."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = asyncio.Lock()

    async def dump(
        self, get: Callable[..., Awaitable[AsyncIterable[Any]]], **filters: object
    ) -> list[Any]:
        """
        All that there is of something, as it was at one time: `await ip.dump(ip.get_links)`.

        The kernel takes one dump of a socket at a time and refuses the next one with EBUSY, so
        tasks take turns.

        Raises:
            OSError: EAGAIN when things change faster than they can be read.
        """
        async with self._turn:
            for _ in range(_DUMP_TRIES):
                with oserrors(get.__name__):
                    found = [message async for message in await get(**filters)]
                if not any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in found):
                    return found
        raise OSError(errno.EAGAIN, f"{get.__name__}: this keeps changing while it is read")


@contextlib.contextmanager
def oserrors(doing: str) -> Iterator[None]:
    """Netlink's errors are the system's."""
    try:
        yield
    except NetlinkError as error:
        said = error.args[1] if len(error.args) > 1 else os.strerror(error.code)
        raise OSError(error.code, f"{doing}: {said}") from error
