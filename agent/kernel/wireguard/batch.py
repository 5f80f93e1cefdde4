"""
Peers in batches, of which one that is refused spoils only itself.

A request ends at the first peer that is refused, and does not say which. So it is asked again in
halves, down to that one: what a request does may be done twice.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from .driver import PeerChange

Change: TypeAlias = tuple[str, PeerChange | None]
"""A peer by its public key, and what becomes of it; None: it is deleted."""

_OF_THE_DEVICE: Final = (ConnectionError, FileNotFoundError, PermissionError, TimeoutError)
_NO_DEVICE: Final = {errno.ENODEV, errno.EOPNOTSUPP}


async def put_each(
    batch: Sequence[Change], put: Callable[[Sequence[Change]], Awaitable[None]]
) -> dict[str, OSError]:
    """
    Put a batch; the failures by public key.

    Raises OSError: it has nothing to do with any peer, such as a device that is not there.
    """
    try:
        await put(batch)
    except _OF_THE_DEVICE:
        raise
    except OSError as error:
        if error.errno in _NO_DEVICE:
            raise
        if len(batch) == 1:
            return {batch[0][0]: error}
        half = len(batch) // 2
        return await put_each(batch[:half], put) | await put_each(batch[half:], put)
    return {}
