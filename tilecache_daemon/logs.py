"""The log: readable text on a terminal, one JSON object a line elsewhere."""

import logging
import sys
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor

_STANDARD_KEYS = ("level", "timestamp", "logger", "exception")


def configure_logging(level: str, log_format: Literal["auto", "json", "text"]) -> None:
    """Sends structlog's events and the standard library's records to stderr."""
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    rendering: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_text:
        rendering.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    else:
        rendering += [
            structlog.processors.format_exc_info,
            _kind_and_kv,
            structlog.processors.JSONRenderer(),
        ]
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=rendering)
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _kind_and_kv(_: Any, __: str, event: EventDict) -> EventDict:
    """What happened as `kind`, its facts as `kv`."""
    line: dict[str, Any] = {key: event.pop(key) for key in _STANDARD_KEYS if key in event}
    line["kind"] = event.pop("event")
    line["kv"] = event
    return line
