"""The log: readable text on a terminal, one JSON object a line elsewhere.

A line says in `kind` what happened, by a stable name, and in `kv` its facts. What
is logged through the standard library may bring both in `extra`; otherwise it is
of the kind `message`, and its sentence is the fact.
"""

import logging
import sys
from typing import Any, Final, Literal

import structlog
from structlog.typing import EventDict, Processor

_STANDARD_KEYS: Final = ("level", "timestamp", "logger", "exception")


def configure_logging(level: str, log_format: Literal["auto", "json", "text"]) -> None:
    """Sends structlog's events and the standard library's records to stderr.

    `level` is the daemon's; libraries talk from INFO on at most.
    """
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
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _give_kind],
            processors=_text_rendering() if as_text else _json_rendering(),
        )
    )
    number = logging.getLevelName(level.upper())
    logging.basicConfig(level=max(number, logging.INFO), handlers=[handler], force=True)
    logging.getLogger("tilecache_daemon").setLevel(number)
    logging.captureWarnings(capture=True)


def _text_rendering() -> list[Processor]:
    return [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        _drop_kind,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The prettier ones show variables, and with them passwords.
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _json_rendering() -> list[Processor]:
    return [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        _kind_and_kv,
        structlog.processors.JSONRenderer(),
    ]


def _give_kind(_: Any, __: str, event: EventDict) -> EventDict:
    record = event["_record"]
    event["kind"] = getattr(record, "kind", "message")
    event["kv"] = getattr(record, "kv", {"text": event["event"]})
    return event


def _drop_kind(_: Any, __: str, event: EventDict) -> EventDict:
    """People read the sentence."""
    event.pop("kind", None)
    event.pop("kv", None)
    return event


def _kind_and_kv(_: Any, __: str, event: EventDict) -> EventDict:
    line: dict[str, Any] = {key: event.pop(key) for key in _STANDARD_KEYS if key in event}
    name = event.pop("event")
    line["kind"] = event.pop("kind", name)
    line["kv"] = event.pop("kv", event)
    return line
