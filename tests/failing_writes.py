"""Errors of PostgreSQL that are none of the daemon's operating conditions."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg


@contextmanager
def failing_access_writes(dsn: str) -> Iterator[None]:
    """Each write of an access raises an error that is none of the daemon's operating conditions."""
    with psycopg.connect(dsn, autocommit=True) as sql:
        sql.execute("""
            CREATE FUNCTION divide() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM 1 / 0; RETURN NEW; END $$
        """)
        sql.execute(
            "CREATE TRIGGER divide BEFORE UPDATE OF accessed_at ON tiles"
            " FOR EACH ROW EXECUTE FUNCTION divide()"
        )
        try:
            yield
        finally:
            sql.execute("DROP TRIGGER divide ON tiles")
