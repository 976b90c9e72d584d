"""What a program says while it runs: structured lines on stderr, for people or (JSON) for a log collector.

Called once by each command line; every other module asks structlog for its logger.
"""

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from vmkeep.service.settings import LogSettings

_SECRET_WORDS = ("password", "secret", "credential")


def configure(
    settings: LogSettings, program: str, stream: TextIO | None = None
) -> structlog.typing.FilteringBoundLogger:
    """Set the process's log up and return its first logger, which names the program in every line."""
    stream = stream or sys.stderr
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if settings.form == "json"
        else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            without_secrets,
            *([structlog.processors.format_exc_info] if settings.form == "json" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(program=program)
    return logger


def without_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Blank every value whose key sounds like a secret, unless it only names a file."""
    for key in event:
        folded = key.casefold()
        if any(word in folded for word in _SECRET_WORDS) and not folded.endswith("file"):
            event[key] = "(not shown)"
    return event
