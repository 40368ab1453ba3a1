"""A replica's state that was written in Node from docs/contract.md, beside the cases that all
peers share."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.replica.cases import CASES, NAMES, check

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def answers() -> list[Any]:
    """What was observed in each step of each case."""
    if shutil.which("node") is None:
        pytest.skip("no node on PATH (Node.js 18 or later)")
    run = subprocess.run(
        ["node", HERE / "run_cases.mjs"],
        input=json.dumps({"cases": CASES}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    observed: list[Any] = json.loads(run.stdout)
    return observed


@pytest.mark.parametrize("index", range(len(CASES)), ids=NAMES)
def test_the_state_is_as_the_case_says(answers: list[Any], index: int) -> None:
    for step, observed in zip(CASES[index]["steps"], answers[index], strict=True):
        check(step, observed)
