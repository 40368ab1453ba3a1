"""Times on the command line: every form that a command prints is taken."""

import re
from datetime import datetime, time, timedelta, timezone
from typing import Any, Final

import click
from google.protobuf.timestamp_pb2 import Timestamp

_DURATION: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(h|d|w)\s*")
_HOURS: Final = {"h": 1, "d": 24, "w": 168}
_EXAMPLE: Final = "a time such as 2026-12-24, 2026-12-24 18:30 or 2026-12-24T18:30:00Z"


class Moment(click.ParamType):  # type: ignore[type-arg]
    """A time, in UTC unless it has an offset. A date alone is its beginning, or its end."""

    name = "time"

    def __init__(self, *, end_of_day: bool = False) -> None:
        self._end_of_day = end_of_day

    def convert(self, value: Any, _: Any, context: click.Context | None) -> datetime:
        """As `click.ParamType`."""
        if isinstance(value, datetime):
            return value
        text = value.strip()
        try:
            # Python 3.10 does not read a Z.
            moment = datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in "Zz" else text)
            if self._end_of_day and len(text) == len("2026-12-24"):
                moment = datetime.combine(moment, time.max)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=timezone.utc)
            return moment.astimezone(timezone.utc)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not {_EXAMPLE}", ctx=context)


def parse_duration(_: click.Context, __: click.Parameter, value: str) -> timedelta:
    """The callback of an option whose value is a duration: 12h, 30d or 8w."""
    match = _DURATION.fullmatch(value)
    try:
        if match:
            return timedelta(hours=float(match[1]) * _HOURS[match[2]])
    except OverflowError:
        pass
    raise click.BadParameter(f"{value!r} is not a duration such as 12h, 30d or 8w")


def to_timestamp(moment: datetime | None) -> Timestamp | None:
    """A time as a message."""
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def json_time(message: Timestamp) -> str:
    """RFC 3339 in UTC, with a Z."""
    return message.ToJsonString()


def format_date(message: Timestamp) -> str:
    """The day of a time."""
    return f"{message.ToDatetime():%Y-%m-%d}"


def format_moment(message: Timestamp) -> str:
    """A time to the minute."""
    return f"{message.ToDatetime():%Y-%m-%d %H:%M}Z"
