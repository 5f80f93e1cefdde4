from __future__ import annotations

import asyncio

import pytest


@pytest.fixture(scope="session", autouse=True)
def no_forgotten_loop() -> None:
    """Keep looptime from making an event loop for a sync test, which nobody would close."""
    asyncio.set_event_loop(None)
