from __future__ import annotations

import logging
import sys
from typing import TextIO

from clustermesh.imports import without

# structlog takes it for coloured tracebacks, which costs a daemon 3 MB that it never uses.
with without("rich"):
    import structlog


def configure_logging(level: str, form: str, stream: TextIO | None = None) -> None:
    """
    Have everything logged as one line each, ours and the libraries' alike.

    Call it once. Messages may come from structlog or from `logging`; key-value pairs and `extra`
    are kept as fields.

    Args:
        level: the least severe that is written: debug, info, warning or error.
        form: text for a person, json for a machine.
        stream: where to; None means stderr.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    out = stream or sys.stderr
    render: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if form == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=out.isatty(),
                pad_event_to=0,
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    # It tells of every change in a directory, at the level of what a person wants to read.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
