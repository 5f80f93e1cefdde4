"""How many questions are asked in a second, whatever it is that has to be asked."""

from __future__ import annotations

import asyncio


class Pace:
    """Turns, one after the other in the order in which they are asked for, and never too many."""

    def __init__(self, per_second: float) -> None:
        self._every = 1 / per_second
        self._next = 0.0  # in the time of the loop

    async def turn(self) -> None:
        """Wait for a turn."""
        now = asyncio.get_running_loop().time()
        at = max(now, self._next)
        self._next = at + self._every
        if at > now:
            await asyncio.sleep(at - now)
