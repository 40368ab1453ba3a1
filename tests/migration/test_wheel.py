"""The wheel contains the migrations."""

import venv
from pathlib import Path

from tests.migration.observed_database import Database
from tests.wheels import build_client, build_daemon, run
from tilecache_daemon.schema.migrator import find_migrations


def test_an_installed_wheel_migrates_an_empty_database(
    empty: Database, written: Database, tmp_path: Path
) -> None:
    wheels = build_client(tmp_path), build_daemon(tmp_path)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", *wheels, cwd=tmp_path)

    run(tmp_path / "venv/bin/tilecache", "migrate", "up", "--dsn", empty.dsn, cwd=tmp_path)

    assert empty.catalog() == written.catalog()
    found = run(
        python,
        "-c",
        "from tilecache_daemon.schema import migrator; print(migrator.find_migrations())",
        cwd=tmp_path,
    )
    assert Path(found.strip()).is_relative_to(tmp_path)
    assert not find_migrations().is_relative_to(tmp_path)
