"""How our processes log: one JSON object a line on stderr, the same for all. Does I/O: writes stderr.

It lies in `store` because the API and the workers both need it and may not import each other.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

import structlog
from structlog.typing import EventDict, Processor

LEVEL_VARIABLE: Final = "GIGAFACTORY_LOG_LEVEL"
"""Names a level (`debug`, `info`, …) for one process or a whole stack; default `info`."""

CHATTY: Final = ("httpx", "httpcore", "sqlalchemy.engine.Engine", "alembic.runtime.migration")
"""Loggers of libraries that tell every step at `info`: theirs are shown from `warning` on."""


def configure_logging(process: str, *, level: str | None = None) -> None:
    """Send structlog's and the standard library's records of this process to stderr as JSON lines.

    `process` names the part (`api`, `control`, a factory's name) and stands in every line. Call it once, at
    the start; `structlog.get_logger()` and `logging.getLogger()` both work afterwards.
    """
    number = _level_number(level or os.environ.get(LEVEL_VARIABLE, "info"))
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _without_colours,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _named(process),
    ]
    renderer = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(renderer)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _named(process: str) -> Processor:
    def add_process(_logger: object, _method: str, event: EventDict) -> EventDict:
        event.setdefault("process", process)
        event.setdefault("pid", os.getpid())
        return event

    return add_process


def _without_colours(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Leave out uvicorn's second copy of its message, made for terminals."""
    event.pop("color_message", None)
    return event


def _level_number(name: str) -> int:
    number = logging.getLevelNamesMapping().get(name.strip().upper())
    return logging.INFO if number is None else number
