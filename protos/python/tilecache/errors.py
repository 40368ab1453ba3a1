"""What a call raises when the daemon refuses it or cannot be reached."""

from dataclasses import dataclass, field
from typing import NamedTuple

import grpc


class FieldViolation(NamedTuple):
    """A bad field of a request, for example `tiles[3].key.zoom`."""

    field: str
    description: str


@dataclass
class CallError(Exception):
    """A call that the daemon refused, or that did not reach it."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    """Stable, for machines; empty if the daemon did not answer."""
    violations: list[FieldViolation] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.message
