"""docs/contract.md keeps up with the contract, and its examples run."""

import re
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from tests.daemon_process import DaemonProcess
from tests.tiles import YESTERDAY, Block, insert, tile
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1 import tile_cache_admin_pb2, tile_metadata_store_pb2
from tilecache_daemon.models import Limits
from tilecache_daemon.rpc.calls import CODES
from tilecache_daemon.rpc.status import TABLE
from tilecache_daemon.service.information import CONTRACT_VERSION

DOCUMENT = Path(__file__).parents[2] / "docs" / "contract.md"
TEXT = DOCUMENT.read_text()
METHODS = [
    method
    for file in (tile_metadata_store_pb2, tile_cache_admin_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def test_the_python_examples_run_one_after_the_other(daemon: DaemonProcess) -> None:
    scope: dict[str, Any] = {}

    for example in re.finditer(r"```python\n(.*?)```", TEXT, re.DOTALL):
        code = example[1].replace("/run/tilecache", str(daemon.socket_path.parent))
        lines_before = TEXT.count("\n", 0, example.start(1))
        exec(compile("\n" * lines_before + code, DOCUMENT, "exec"), scope)

    assert "why" in scope, "the last example did not run"


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_each_call_is_described(method: MethodDescriptor) -> None:
    section = section_of(method.name)

    assert "- Errors: " in section
    assert "- Limits: " in section
    assert re.search(rf"```python\n[^`]*\.{method.name}\(", section)
    streams = method.client_streaming or method.server_streaming
    called = method.name if streams else f"{method.name}Async"
    assert re.search(rf"```csharp\n[^`]*\.{called}\(", section)


def test_each_reason_stands_in_the_table_with_its_code_and_delay() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (`[A-Z_]+` \| .*?) \|", TEXT, re.MULTILINE))

    for error, (code, retry_after) in TABLE.items():
        delay = f"{retry_after.total_seconds():g} s" if retry_after else "no"
        assert rows.pop(error.reason) == f"`{CODES[code].name}` | {delay}"
    assert set(rows) == {grpc.StatusCode.INTERNAL.name}


CONTENTS = {"same": "picture", "different": "another picture"}
CAPTURES = {"not later": YESTERDAY, "later": YESTERDAY + timedelta(hours=1)}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("capture", CAPTURES)
def test_a_conflict_ends_as_its_table_says(
    client: TileCacheClient, content: str, capture: str
) -> None:
    header, *rows = re.findall(r"^\|(.*)\|$", section_of("Conflicts", level=2), re.MULTILINE)
    (row,) = (row for row in rows if row.startswith(f" {content} | {capture} |"))
    policies, outcomes = (re.findall(r"`(\w+)`", line) for line in (header, row))

    for policy, outcome in zip(policies, outcomes, strict=True):
        key = Block().key()
        insert(client, tile(key))
        again = tile(key, CONTENTS[content], CAPTURES[capture])
        assert outcome_of(client, again, f"ON_CONFLICT_{policy}") == outcome


def outcome_of(client: TileCacheClient, message: Any, policy: str) -> str:
    """What becomes of an insert: its outcome, or the reason of its refusal."""
    enums = tile_metadata_store_pb2
    try:
        answer = insert(client, message, enums.OnConflict.Value(policy))
    except CallError as error:
        return error.reason
    return enums.InsertOutcome.Name(answer.outcome).removeprefix("INSERT_OUTCOME_")


def test_the_limits_are_those_of_the_daemon() -> None:
    rows = dict(re.findall(r"^\| `(max_\w+)` \| ([\d,]+) \|", TEXT, re.MULTILINE))

    assert rows == {name: f"{value:,}" for name, value in asdict(Limits()).items()}


def test_the_change_log_begins_with_the_contracts_version() -> None:
    log = section_of("Change log", level=2)

    assert re.findall(r"- \*\*(.*?)\*\*", log)[0] == CONTRACT_VERSION


def section_of(title: str, level: int = 3) -> str:
    """A section's text, to the next heading."""
    found = re.search(rf"^{'#' * level} {title}\n(.*?)(?=^##|\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None, f"docs/contract.md has no section {title}"
    return found[1]
