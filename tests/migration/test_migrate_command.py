"""`tilecache migrate`."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.migration.observed_database import Database
from tilecache.identity import TILE_NAMESPACE_UUID
from tilecache_daemon.schema.migrator import HEAD_REVISION, REVISIONS

TILECACHE = Path(sys.executable).with_name("tilecache")
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name != "DB_URL" and not name.startswith("TILECACHE_")
}


def migrate(
    *arguments: str | Path, answer: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command, on a terminal if there is an answer to type."""
    terminal, stdin = pty.openpty() if answer else (None, subprocess.DEVNULL)
    if terminal is not None:
        os.write(terminal, f"{answer}\n".encode())
    try:
        return subprocess.run(
            [TILECACHE, "migrate", *arguments],
            stdin=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=ENVIRONMENT | environment,
        )
    finally:
        if terminal is not None:
            os.close(terminal)
            os.close(stdin)


def test_up_logs_what_it_applied(empty: Database) -> None:
    first, second = (migrate("up", "--dsn", empty.dsn) for _ in range(2))

    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stderr.startswith(f"Migrated the schema from base to {HEAD_REVISION}")
    assert second.stderr.startswith(f"The schema is at {HEAD_REVISION}, nothing to migrate")
    assert empty.revisions() == [HEAD_REVISION]


def test_up_shows_its_progress(old: Database) -> None:
    assert "derived the ids of 5 of 5 tiles\n" in migrate("up", "--dsn", old.dsn).stderr


def test_the_database_may_come_from_a_file_or_the_environment(
    empty: Database, tmp_path: Path
) -> None:
    file = tmp_path / "tilecache.toml"
    file.write_text(f"dsn = {json.dumps(empty.dsn)}\n")

    assert migrate("up", "--config", file).returncode == 0
    assert migrate("current", DB_URL=empty.dsn).stdout == f"{HEAD_REVISION} (up to date)\n"


def test_a_missing_database_is_a_usage_error() -> None:
    ran = migrate("up")

    assert ran.returncode == 2
    assert "--dsn" in ran.stderr
    assert "tilecache serve" in ran.stderr


@pytest.mark.parametrize("command", ["up", "current", "plan"])
def test_an_unreachable_database_has_its_own_exit_code(command: str, tmp_path: Path) -> None:
    ran = migrate(command, "--dsn", f"host={tmp_path} dbname=absent")

    assert ran.returncode == 3
    assert "does not answer" in ran.stderr


@pytest.mark.parametrize("command", ["up", "current", "plan"])
def test_a_newer_database_is_refused(old: Database, command: str) -> None:
    old.query("UPDATE alembic_version SET version_num = '9999_from_the_future'")

    ran = migrate(command, "--dsn", old.dsn)

    assert ran.returncode == 5
    assert "9999_from_the_future" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_current_shows_what_is_pending(old: Database) -> None:
    ran = migrate("current", "--dsn", old.dsn)

    assert ran.stdout == f"0001_initial (pending: {', '.join(REVISIONS[1:])})\n"


def test_current_as_json(old: Database) -> None:
    ran = migrate("current", "--json", "--dsn", old.dsn)

    assert json.loads(ran.stdout) == {
        "current_revision": "0001_initial",
        "head_revision": HEAD_REVISION,
        "pending_revisions": list(REVISIONS[1:]),
        "namespace_uuid": str(TILE_NAMESPACE_UUID),
    }


def test_plan_shows_the_sql_and_changes_nothing(old: Database) -> None:
    before = old.catalog()

    shown = migrate("plan", "--dsn", old.dsn).stdout
    steps = json.loads(migrate("plan", "--json", "--dsn", old.dsn).stdout)

    assert [step["revision"] for step in steps] == list(REVISIONS[1:])
    assert all(step["sql"] in shown for step in steps)
    assert "ADD COLUMN tile_uuid uuid" in shown
    assert "-- Takes about 1 s" in shown
    assert old.catalog() == before
    assert old.revisions() == ["0001_initial"]


def test_plan_at_head_says_so(empty: Database) -> None:
    migrate("up", "--dsn", empty.dsn)

    assert "Nothing to do" in migrate("plan", "--dsn", empty.dsn).stdout
    assert migrate("plan", "--json", "--dsn", empty.dsn).stdout == "[]\n"


def test_down_needs_yes_without_a_terminal(empty: Database) -> None:
    migrate("up", "--dsn", empty.dsn)

    refused = migrate("down", "0001_initial", "--dsn", empty.dsn)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert empty.revisions() == [HEAD_REVISION]

    assert migrate("down", "0001_initial", "--yes", "--dsn", empty.dsn).returncode == 0
    assert empty.revisions() == ["0001_initial"]


def test_down_asks_for_confirmation_on_a_terminal(empty: Database) -> None:
    migrate("up", "--dsn", empty.dsn)

    refused = migrate("down", "0001_initial", "--dsn", empty.dsn, answer="n")
    assert refused.returncode == 1
    assert f"from {HEAD_REVISION} to 0001_initial" in refused.stderr
    assert empty.revisions() == [HEAD_REVISION]

    assert migrate("down", "0001_initial", "--dsn", empty.dsn, answer="y").returncode == 0
    assert empty.revisions() == ["0001_initial"]


def test_down_to_an_unknown_revision_is_refused(old: Database) -> None:
    ran = migrate("down", "0000_nothing", "--yes", "--dsn", old.dsn)

    assert ran.returncode == 5
    assert "0001_initial" in ran.stderr
