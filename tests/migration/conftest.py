"""Databases at several revisions."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from tests.migration.observed_database import FLIGHT, OLD_TILES, Database


@pytest.fixture
def empty(empty_database: str) -> Database:
    """A database without a schema."""
    return Database(empty_database)


@pytest.fixture
def newest(database: str) -> Database:
    """A database at the newest schema."""
    return Database(database)


@pytest.fixture
def written(empty: Database) -> Iterator[Database]:
    """A database with the schema of schema.sql."""
    name = Identifier(f"tilecache_written_{uuid4().hex}")
    with psycopg.connect(empty.dsn, autocommit=True) as admin:
        admin.execute(SQL("CREATE DATABASE {}").format(name))
        try:
            database = Database(make_conninfo(empty.dsn, dbname=name.as_string().strip('"')))
            database.query((Path(__file__).parent / "schema.sql").read_text())
            yield database
        finally:
            admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture
def old(empty: Database) -> Database:
    """A database at 0001_initial with a flight, a sector and the locked tiles."""
    empty.upgrade_to("0001_initial")
    empty.query("INSERT INTO flights VALUES (%s, 'first', now(), NULL)", FLIGHT)
    empty.query(
        "INSERT INTO sector_classifications (name, classification) VALUES ('north', 'stable_rear')"
    )
    for tile in OLD_TILES:
        empty.insert_old_tile(*tile)
    return empty
