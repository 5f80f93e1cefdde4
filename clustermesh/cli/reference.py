"""
The commands and the daemons' settings as docs/cli.md has them.

`python -m clustermesh.cli.reference` writes that file. A test fails when it and the code differ.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from agent.settings import AgentSettings
from apiserver.settings import ApiserverSettings
from clustermesh.settings import settings_app

from .main import app

FILE: Final = Path(__file__).parents[2] / "docs/cli.md"

_HEAD: Final = """\
<!-- Written by `python -m clustermesh.cli.reference`. Change the code instead. -->
# Commands

| | |
|---|---|
| [`clustermesh`](#clustermesh) | what a person types |
| [`clustermesh-apiserver`](#clustermesh-apiserver) | publishes a cluster; one for each |
| [`clustermesh-agent`](#clustermesh-agent) | joins a node to the mesh; one on every node |

`clustermesh` exits with 0 when all is well, with 1 when it is not (an error has one line, and
mostly a hint), with 2 when the command line makes no sense.

A **daemon** takes each setting from the first that has it: the flag `--node-name`, the environment
variable `CLUSTERMESH_NODE_NAME`, the key `node-name` in the YAML file that `--config` names, the
default. SIGTERM and SIGINT stop it; all that it has published or programmed stays. On `--listen` it
answers:

| path | |
|---|---|
| `/healthz` | 200 while the process does its work |
| `/readyz` | 200 when all that it should do at its start is done; else 503, and why not |
| `/status` | what `clustermesh status` prints, as JSON |
| `/tables/NAME` | what `clustermesh show NAME` prints: `{"rows": [...], "failures": [...]}` |
| `/metrics` | for Prometheus |
"""


def reference() -> str:
    """The text of docs/cli.md."""
    programs = [app]
    for name, kind in (("apiserver", ApiserverSettings), ("agent", AgentSettings)):
        program = f"clustermesh-{name}"
        programs.append(settings_app(kind, name=program, version="", found=lambda _: None))
    started_as, sys.argv[0] = sys.argv[0], app.name[0]  # or cyclopts takes `python -m` for a name
    try:
        pages = [p.generate_docs(heading_level=2, max_heading_level=4) for p in programs]
    finally:
        sys.argv[0] = started_as
    lines = "\n".join([_HEAD, *pages]).splitlines()
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


if __name__ == "__main__":
    FILE.write_text(reference())
