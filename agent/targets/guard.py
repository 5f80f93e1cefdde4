"""The devices that nothing may pass in plain text, and how far each is trusted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping

from agent.kernel.guard import Guard


class GuardTarget:
    """A `Target` of devices by index: whether one is an uplink."""

    def __init__(self, guard: Guard) -> None:
        """Be the only one who attaches it."""
        self._guard = guard
        self._guarded: dict[int, bool] = {}

    async def actual(self) -> Mapping[int, bool]:
        """Those that are guarded: made sure of, since anybody can detach a program."""
        failed = self._attach(self._guarded)
        self._guarded = {i: up for i, up in self._guarded.items() if i not in failed}
        return dict(self._guarded)

    async def apply(
        self, puts: Mapping[int, bool], deletes: Collection[int]
    ) -> Mapping[int, OSError]:
        """Fails per row: ENODEV when the device has just gone."""
        for index in deletes:
            self._guard.detach(index)
            self._guarded.pop(index, None)
        failed = self._attach(puts)
        self._guarded |= {i: up for i, up in puts.items() if i not in failed}
        return failed

    async def drift(self) -> AsyncIterator[Collection[int] | None]:
        """End at once: devices that come and go make other rows."""
        return
        yield  # makes this a generator

    def _attach(self, devices: Mapping[int, bool]) -> dict[int, OSError]:
        failed: dict[int, OSError] = {}
        for index, is_uplink in devices.items():
            try:
                self._guard.attach(index, is_uplink=is_uplink)
            except OSError as error:
                failed[index] = error
        return failed
