from __future__ import annotations

import logging
import time

import msgspec

log = logging.getLogger(__name__)


class Health(msgspec.Struct):
    """
    How a source is doing, for `status` to print. Only its source changes it.

    Times are seconds since the epoch. Every change between good and bad, and every new error, is
    also a line in the log.
    """

    name: str  # what the log lines are about
    connected: bool = False
    since: float = msgspec.field(default_factory=time.time)  # when `connected` last changed
    last_error: str | None = None  # kept after a recovery
    last_error_at: float | None = None
    reconnects: int = 0  # how often a connection was lost
    listings: int = 0  # how often everything had to be listed
    rows: int = 0  # received, listed or changed
    bytes_received: int = 0  # of values
    bad_rows: int = 0  # skipped
    last_bad_row: str | None = None
    skipped: dict[str, str] = msgspec.field(default_factory=dict)  # at present: why, by key

    def up(self) -> None:
        """Changes are coming in, or would."""
        if not self.connected:
            log.info("%s: connected", self.name)
            self.connected, self.since = True, time.time()

    def down(self, error: OSError) -> None:
        """The connection is lost, or a try to connect has failed."""
        if self.connected:
            self.connected, self.since = False, time.time()
            self.reconnects += 1
        elif str(error) == self.last_error:
            self.last_error_at = time.time()
            return
        log.warning("%s: %s", self.name, error)
        self.last_error, self.last_error_at = str(error), time.time()

    def bad(self, key: bytes, error: ValueError) -> None:
        """A row was skipped."""
        name = key.decode(errors="replace")
        self.bad_rows += 1
        self.last_bad_row = f"{name}: {error}"
        self.skipped[name] = str(error)
        log.warning("%s: skipped %s", self.name, self.last_bad_row)

    def good(self, key: bytes) -> None:
        """A row is in order, or gone."""
        if self.skipped:
            self.skipped.pop(key.decode(errors="replace"), None)
