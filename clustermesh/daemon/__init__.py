"""
What both daemons share: settings, logs, signals, and an HTTP server to look inside.

    def main() -> None:
        sys.exit(run("agent", AgentSettings, serve_node))

    async def serve_node(settings: AgentSettings, daemon: Daemon) -> None:
        daemon.add_table(...); daemon.add_readiness(...)
        async with asyncio.TaskGroup() as tasks: ...
"""

from .daemon import Daemon, Renderer
from .logs import configure_logging
from .run import run
from .serve import serve

__all__ = ["Daemon", "Renderer", "configure_logging", "run", "serve"]
