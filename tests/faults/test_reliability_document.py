"""Each guarantee in docs/reliability.md names an existing test."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    line.split(" | ")
    for line in (ROOT / "docs" / "reliability.md").read_text().splitlines()
    if "::" in line
]
OWN = [path for name in ("faults", "fuzz") for path in (ROOT / "tests" / name).glob("test_*.py")]


def named_test(row: list[str]) -> tuple[Path, str]:
    path, test = re.findall(r"`(tests/[\w/.]+)::(\w+)`", row[-1])[0]
    return ROOT / path, test


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("| "))
def test_each_guarantee_names_an_existing_test(row: list[str]) -> None:
    path, test = named_test(row)
    assert re.search(rf"^(async )?def {test}\(", path.read_text(), re.MULTILINE)


def test_each_fault_test_is_in_the_document() -> None:
    named = set(map(named_test, ROWS))
    for path in OWN:
        if path != Path(__file__):
            tests = re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
            assert {(path, test) for test in tests} <= named
