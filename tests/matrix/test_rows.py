"""The rows of `make test-matrix`, and the table that docs/install.md shows of them."""

import re
from pathlib import Path

from tests.client_package.environments import Version
from tests.matrix.run import PYTHONS, Row, plan_rows
from tests.wheels import CHECKOUT
from tilecache_daemon.postgres.binaries import SUPPORTED_MAJORS

NOWHERE = Path("/nowhere")


def test_each_postgresql_is_run_whatever_pythons_there_are() -> None:
    for present in (PYTHONS, PYTHONS[:-1], PYTHONS[1:2]):
        rows = plan_rows(dict.fromkeys(present, NOWHERE))

        run = {row for row in rows if row.python in present and row.dependencies == "newest"}
        assert {row.postgres for row in run} == set(SUPPORTED_MAJORS)
        assert {row.python for row in run} == set(present)


def test_a_missing_python_keeps_its_row() -> None:
    rows = plan_rows(dict.fromkeys(PYTHONS[:-1], NOWHERE))

    assert rows[-2:] == [Row(18, (3, 14), "newest"), Row(18, (3, 13), "newest")]


def test_the_guide_shows_a_row_for_each_version() -> None:
    guide = (CHECKOUT / "docs" / "install.md").read_text()
    found = re.findall(
        r"^\| (\d+)[\d.]* \| (3)\.(\d+)[\d.]* \| (lowest|newest) ", guide, re.MULTILINE
    )
    shown = [
        Row(int(postgres), (int(major), int(minor)), dependencies)
        for postgres, major, minor, dependencies in found
    ]

    pythons: dict[Version, Path] = dict.fromkeys(PYTHONS, NOWHERE)
    assert set(plan_rows(pythons)) <= set(shown)
