"""What messages do to the C# replica's state, beside the cases that all peers share."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.csharp.mono import run_program
from tests.replica.cases import CASES, NAMES, Json, check


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_state_is_as_the_case_says(replica_driver: Path, case: Json) -> None:
    lines = ["new", *(line for step in case["steps"] for line in commands(step))]

    answer = run_program(replica_driver, lines=lines)

    assert answer.returncode == 0, answer.stderr
    for step, observed in zip(case["steps"], answer.stdout.splitlines(), strict=True):
        check(step, json.loads(observed))


def commands(step: Json) -> Iterator[str]:
    """A step in the driver's words."""
    if "follow" in step:
        yield f"follow {items(step['follow'])}"
    if "reconnect_at_s" in step:
        yield f"reconnect {step['reconnect_at_s']}"
    if "disconnect" in step:
        yield "disconnect"
    message = step.get("message", {})
    for block in message.get("blocks", ()):
        yield " ".join(
            (
                f"block {message['number']} {block['block']} {block['version']}",
                f"{block.get('base', '-')} {json.dumps(block.get('partial', False))}",
                f"{items(block.get('tiles', ()))} {items(block.get('removed', ()))}",
            )
        )
    if message.get("synced"):
        yield f"synced {message['number']}"
    if beat := message.get("heartbeat"):
        degraded = json.dumps(beat.get("degraded", False))
        received_at = step["received_at_s"]
        yield f"heartbeat {beat.get('age_ms', '-')} {degraded} {beat['elapsed_ms']} {received_at}"
    yield "observe"


def items(some: list[str]) -> str:
    return ";".join(some) or "-"
