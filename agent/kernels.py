"""What an agent programs: a kernel, or none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from clustermesh.model import IPAddress
from clustermesh.state import Reconciler
from clustermesh.status import Datapath

from .encryption import Encryption
from .kernel.facts import Facts
from .rules.causes import Lookup


class Kernel(Protocol):
    """A kernel to program, or none."""

    async def __aenter__(self) -> Self:
        """Open it. Raises UserError if it lacks something."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of it. What is programmed goes on."""

    async def run(self) -> None:
        """Keep it programmed until cancelled."""

    def reconcilers(self, table: str) -> Sequence[Reconciler[Any, Any, Any]]:
        """Those that put `table` into it."""

    def status(self) -> Datapath:
        """How it is."""

    def unready(self) -> str | None:
        """Why it does not carry traffic as it should; None when it does."""

    async def attached(self) -> None:
        """Wait until it carries traffic."""

    @property
    def encryption(self) -> Encryption | None:
        """What encrypts, if anything does. Not before it is open."""

    @property
    def facts(self) -> Facts | None:
        """What this node's network is like; None: it has not been looked at."""

    async def lookup(self, source: IPAddress, target: IPAddress) -> Lookup:
        """The route that it takes. Raises OSError if it has none."""


class NoKernel:
    """`--datapath none`: everything is computed, and nothing is programmed."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    async def run(self) -> None:
        """Nothing to keep."""
        await asyncio.Event().wait()

    def reconcilers(self, table: str) -> Sequence[Reconciler[Any, Any, Any]]:
        """None at all."""
        del table
        return ()

    def status(self) -> Datapath:
        """There is none."""
        return Datapath(mode="none")

    def unready(self) -> str | None:
        """There is nothing to wait for."""
        return None

    async def attached(self) -> None:
        """There is nothing to wait for."""

    @property
    def encryption(self) -> None:
        """Nothing does."""
        return

    @property
    def facts(self) -> None:
        """Nobody looks."""
        return

    async def lookup(self, source: IPAddress, target: IPAddress) -> Lookup:
        """Nobody looks."""
        del source, target
        return Lookup()
