"""Logging: text on a terminal, JSON Lines elsewhere.

In JSON, `kind` is the stable name of the event and `kv` has its facts. A record of the
standard library can set both in `extra`. Otherwise its kind is `message`, and its
text is the only fact.
"""

import logging
import sys
import threading
from typing import Any, Final, Literal

import structlog
from structlog.typing import EventDict, Processor

_STANDARD_KEYS: Final = ("level", "timestamp", "logger", "exception")


def configure_logging(level: str, log_format: Literal["auto", "json", "text"]) -> None:
    """Logs structlog's events and the standard library's records to stderr.

    `level` applies to the daemon. Libraries never log below INFO.
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
            foreign_pre_chain=[*shared, _add_kind],
            processors=_text_rendering() if as_text else _json_rendering(),
        )
    )
    number = logging.getLevelName(level.upper())
    logging.basicConfig(level=max(number, logging.INFO), handlers=[handler], force=True)
    logging.getLogger("tilecache_daemon").setLevel(number)
    logging.captureWarnings(capture=True)
    threading.excepthook = _log_thread_error


def _log_thread_error(failure: threading.ExceptHookArgs) -> None:
    name = failure.thread.name if failure.thread else None
    structlog.get_logger(__name__).error("thread_failed", thread=name, exc_info=failure.exc_value)


def _text_rendering() -> list[Processor]:
    return [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        _drop_kind,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The other formatters show variables, which may contain passwords.
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _json_rendering() -> list[Processor]:
    return [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        _nest_facts,
        structlog.processors.JSONRenderer(),
    ]


def _add_kind(_: Any, __: str, event: EventDict) -> EventDict:
    record = event["_record"]
    event["kind"] = getattr(record, "kind", "message")
    event["kv"] = getattr(record, "kv", {"text": event["event"]})
    return event


def _drop_kind(_: Any, __: str, event: EventDict) -> EventDict:
    """The text format has only the message."""
    event.pop("kind", None)
    event.pop("kv", None)
    return event


def _nest_facts(_: Any, __: str, event: EventDict) -> EventDict:
    line: dict[str, Any] = {key: event.pop(key) for key in _STANDARD_KEYS if key in event}
    name = event.pop("event")
    line["kind"] = event.pop("kind", name)
    line["kv"] = event.pop("kv", event)
    return line
