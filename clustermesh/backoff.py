from __future__ import annotations

import random


class Backoff:
    """
    How long to wait before the next try: twice as long after each failure, with jitter.

    The jitter keeps a thousand agents from coming back to a restarted server all at once.
    """

    def __init__(self, first: float = 0.05, most: float = 10.0) -> None:
        """
        Args:
            first: seconds.
            most: seconds.
        """
        self._first = first
        self._most = most
        self._next = first

    def reset(self) -> None:
        """Begin anew: it works."""
        self._next = self._first

    def next(self) -> float:
        """Return the seconds to wait now."""
        wait = self._next
        self._next = min(self._most, wait * 2)
        return wait * random.uniform(0.5, 1.0)
