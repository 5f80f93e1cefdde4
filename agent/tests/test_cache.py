from __future__ import annotations

from pathlib import Path

import pytest

from agent.cache import Cache, Snapshot
from clustermesh.model import ClusterId, ClusterName

WEST = ClusterName("west")
SNAPSHOT = Snapshot(ClusterId(2), {"services": [("test/echo", b"{}")]})


def test_what_was_saved_last_is_loaded_until_it_is_forgotten(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "state")
    assert cache.load(WEST) is None
    cache.save(WEST, SNAPSHOT)
    assert Cache(tmp_path / "state").load(WEST) == SNAPSHOT
    cache.forget(WEST)
    assert cache.load(WEST) is None


def test_a_copy_that_cannot_be_kept_is_a_warning_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "west.cache").mkdir()  # what a full disk says, root never hears
    cache = Cache(tmp_path)
    cache.save(WEST, SNAPSHOT)
    cache.save(WEST, SNAPSHOT)
    (warning,) = caplog.messages
    assert "west.cache" in warning
    assert "cannot be kept" in warning
