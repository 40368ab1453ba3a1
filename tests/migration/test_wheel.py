"""The wheel contains the migrations."""

import subprocess
import sys
import venv
from pathlib import Path

from tests.migration.observed_database import Database
from tilecache_daemon.schema.migrator import find_migrations

CHECKOUT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_an_installed_wheel_migrates_an_empty_database(
    empty: Database, written: Database, tmp_path: Path
) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, cwd=CHECKOUT)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)

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
