"""Runs Alembic from code, without alembic.ini and without output.

Imported only if there is something to migrate: loading Alembic and SQLAlchemy costs
time and memory at every start.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, NamedTuple

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from tilecache_daemon.errors import MigrationError

Direction = Literal["upgrade", "downgrade"]

_COMMANDS: Final[dict[Direction, Callable[[Config, str], None]]] = {
    "upgrade": command.upgrade,
    "downgrade": command.downgrade,
}


def run_alembic(
    migrations: Path,
    direction: Direction,
    target: str,
    connect: Callable[[], psycopg.Connection],
    report_progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Migrates to a revision in one transaction; raises psycopg.Error or MigrationError.

    `report_progress` is called with what has been done, in the course of long work.
    """

    def connect_for_transaction() -> psycopg.Connection:
        connection = connect()
        connection.autocommit = False
        return connection

    engine = create_engine(
        "postgresql+psycopg://", creator=connect_for_transaction, poolclass=NullPool
    )
    config = _config(migrations)
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            config.attributes["report_progress"] = report_progress
            _COMMANDS[direction](config, target)
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise error.orig from error
        raise
    except CommandError as error:
        raise MigrationError(str(error)) from error


class Description(NamedTuple):
    """What is known of one revision's upgrade."""

    doc: str
    sql: str
    seconds_per_tile: float
    bytes_per_tile: int


def describe_upgrade(migrations: Path, previous: str | None, revision: str) -> Description:
    """The summary of one revision, the SQL that its upgrade runs, and what that costs."""
    config = _config(migrations)
    config.output_buffer = written = io.StringIO()
    command.upgrade(config, f"{previous or 'base'}:{revision}", sql=True)
    sql = written.getvalue().strip().replace("\n        ", "\n")  # as indented in the files
    script = ScriptDirectory.from_config(config).get_revision(revision)
    return Description(
        script.doc,
        sql,
        getattr(script.module, "MICROSECONDS_PER_TILE", 0) / 1_000_000,
        getattr(script.module, "BYTES_PER_TILE", 0),
    )


def _config(migrations: Path) -> Config:
    config = Config()
    # Alembic reads the setting with configparser, which interpolates %.
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    return config
