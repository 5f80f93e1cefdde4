from __future__ import annotations

from clustermesh.cli import reference


def test_the_reference_says_what_the_commands_and_the_daemons_take() -> None:
    assert reference.FILE.read_text() == reference.reference(), (
        "docs/cli.md is out of date: run python -m clustermesh.cli.reference"
    )
