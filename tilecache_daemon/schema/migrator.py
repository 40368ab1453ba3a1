"""Migrates the database schema to the revision that this version needs.

Each file `migrations/versions/NNNN_what_it_brings.py` is one revision, and the file's
name is the revision's id. So the head revision is known, and a database that is at
it is recognized without loading Alembic or SQLAlchemy.
"""

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol

import psycopg

from tilecache.identity import TILE_NAMESPACE_UUID
from tilecache_daemon.clock import Clock
from tilecache_daemon.errors import MigrationError
from tilecache_daemon.schema.connection import (
    LOCK_TIMEOUT_S,
    DatabaseUnreachableError,
    Interruption,
    analyze_tiles,
    connect,
    estimate_tile_count,
    lock,
    read_revision,
    translating_errors,
)
from tilecache_daemon.schema.requirements import (
    check_connection_limit,
    check_privileges,
    check_server,
)

__all__ = [
    "HEAD_REVISION",
    "DatabaseUnreachableError",
    "Interruption",
    "MigrationError",
    "MigrationResult",
    "apply_migrations",
    "check_database",
    "current_revision",
    "downgrade",
    "plan_migrations",
]

BASE: Final = "base"
"""Alembic's name for the revision of a database without a schema."""

_log = logging.getLogger(__name__)


class HasDsn(Protocol):
    """What is needed of a configuration. `migration_lock_timeout_s` is used if it exists."""

    @property
    def dsn(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """The result of a run. A revision of None is a database without a schema."""

    from_revision: str | None
    to_revision: str | None
    revisions_applied: tuple[str, ...]
    """In order of application; for a downgrade, the reverted ones. Empty if none."""
    elapsed_s: float


class PlannedRevision(NamedTuple):
    """A revision that would be applied."""

    revision: str
    doc: str
    sql: str
    estimated_s: float
    estimated_bytes: int
    """Of disk space that the database takes more than before, until a vacuum reuses it."""


def find_migrations() -> Path:
    """The migrations inside the installed package, else those of the checkout."""
    package = Path(__file__).parents[1]
    for directory in (package / "migrations", package.parent / "migrations"):
        if (directory / "env.py").is_file():
            return directory
    raise MigrationError(f"the migrations are missing: the installation of {package} is incomplete")


REVISIONS: Final = tuple(
    sorted(file.stem for file in (find_migrations() / "versions").glob("[0-9]*.py"))
)
"""All revisions, oldest first."""
HEAD_REVISION: Final = REVISIONS[-1]


def apply_migrations(
    config: HasDsn,
    clock: Clock | None = None,
    interruption: Interruption | None = None,
    report_progress: Callable[[str], None] = _log.info,
) -> MigrationResult:
    """Upgrades the database to `HEAD_REVISION`, in one transaction; then analyses `tiles`.

    `report_progress` is called with what has been done, in the course of long work.
    The address is the configuration's `dsn`, else `$DB_URL`. Raises MigrationError,
    with the schema unchanged; its subclass DatabaseUnreachableError if PostgreSQL
    does not answer.
    """
    dsn = config.dsn or os.environ.get("DB_URL")
    if not dsn:
        raise MigrationError("no database is configured: set dsn or DB_URL")
    lock_timeout_s = float(getattr(config, "migration_lock_timeout_s", LOCK_TIMEOUT_S))
    result = _Run(dsn, lock_timeout_s, clock or Clock(), interruption, report_progress).upgrade()
    if result.revisions_applied:
        _log_change("schema_migrated", "Migrated the schema", result)
    else:
        _log_no_change(result)
    return result


def downgrade(
    dsn: str,
    revision: str,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    clock: Clock | None = None,
) -> MigrationResult:
    """Downgrades the schema to an older revision (or `BASE`), in one transaction.

    The data that the later revisions store is lost. Raises MigrationError like
    `apply_migrations`, and if the database is older than the revision.
    """
    result = _Run(dsn, lock_timeout_s, clock or Clock()).downgrade(revision)
    if result.revisions_applied:
        _log_change("schema_downgraded", "Downgraded the schema", result)
    else:
        _log_no_change(result)
    return result


def current_revision(dsn: str) -> str | None:
    """The revision that the database is at, known or not; None without a schema."""
    with translating_errors(), connect(dsn) as connection:
        return read_revision(connection)


def check_database(dsn: str, pool_max_size: int) -> str | None:
    """As `current_revision`, of a database that the daemon can use; else raises MigrationError,
    which says what to do."""
    with translating_errors(), connect(dsn) as connection:
        # First: with too few connections, a check that needs a second one would wait.
        check_connection_limit(
            connection, pool_max_size, lambda interruption: connect(dsn, interruption=interruption)
        )
        check_server(connection, lambda: connect(dsn))
        check_privileges(connection)
        return read_revision(connection)


def plan_migrations(dsn: str) -> list[PlannedRevision]:
    """The revisions that `apply_migrations` would apply. Changes nothing."""
    with translating_errors(), connect(dsn) as connection:
        current = read_revision(connection)
        pending = pending_revisions(current)
        if not pending:
            return []
        tile_count = estimate_tile_count(connection)
    describe = _load_alembic_runner().describe_upgrade
    planned = []
    for before, revision in zip((current, *pending), pending, strict=False):
        known = describe(find_migrations(), before, revision)
        estimate = (tile_count * known.seconds_per_tile, tile_count * known.bytes_per_tile)
        planned.append(PlannedRevision(revision, known.doc, known.sql, *estimate))
    return planned


def pending_revisions(current: str | None) -> tuple[str, ...]:
    """The revisions after `current`; raises MigrationError if this version does not know it."""
    if current is None:
        return REVISIONS
    if current not in REVISIONS:
        raise MigrationError(
            f"the database is at revision {current!r}, which this version does not know: "
            f"its newest is {HEAD_REVISION!r}. A newer version has migrated the database, or it "
            "belongs to another program. Nothing was changed. Install the version that migrated it"
        )
    return REVISIONS[REVISIONS.index(current) + 1 :]


class _Run:
    """One migration run on one database."""

    def __init__(
        self,
        dsn: str,
        lock_timeout_s: float,
        clock: Clock,
        interruption: Interruption | None = None,
        report_progress: Callable[[str], None] = _log.info,
    ) -> None:
        self._dsn = dsn
        self._report_progress = report_progress
        self._interruption = interruption
        self._lock_timeout_s = lock_timeout_s
        self._monotonic = clock.monotonic
        self._started_at = clock.monotonic()

    def upgrade(self) -> MigrationResult:
        with translating_errors(), self._connect() as connection:
            check_server(connection, self._connect)
            current = read_revision(connection)
            if not pending_revisions(current):
                return self._result(current, current, ())
            lock(connection)
            # The process that held the lock may have migrated the database.
            current = read_revision(connection)
            pending = pending_revisions(current)
            if pending:
                self._run_alembic("upgrade", HEAD_REVISION)
                if current:
                    analyze_tiles(connection)
            return self._result(current, HEAD_REVISION, pending)

    def downgrade(self, revision: str) -> MigrationResult:
        target = _known_revision(revision)
        with translating_errors(), self._connect() as connection:
            lock(connection)
            current = read_revision(connection)
            missing, above = pending_revisions(current), pending_revisions(target)
            if len(above) < len(missing):
                raise MigrationError(f"the database is at {current or BASE}, older than {revision}")
            reverted = above[: len(above) - len(missing)][::-1]
            if reverted:
                self._run_alembic("downgrade", revision)
            return self._result(current, target, reverted)

    def _connect(self) -> psycopg.Connection[Any]:
        return connect(self._dsn, self._lock_timeout_s, self._interruption)

    def _run_alembic(self, direction: Literal["upgrade", "downgrade"], target: str) -> None:
        run = _load_alembic_runner().run_alembic
        try:
            run(find_migrations(), direction, target, self._connect, self._report_progress)
        except psycopg.errors.SerializationFailure:
            run(find_migrations(), direction, target, self._connect, self._report_progress)

    def _result(
        self, before: str | None, after: str | None, applied: tuple[str, ...]
    ) -> MigrationResult:
        return MigrationResult(before, after, applied, self._monotonic() - self._started_at)


def _known_revision(revision: str) -> str | None:
    if revision == BASE:
        return None
    if revision not in REVISIONS:
        known = ", ".join((BASE, *REVISIONS))
        raise MigrationError(f"there is no revision {revision!r}; the revisions are {known}")
    return revision


def _load_alembic_runner() -> Any:
    # Alembic logs at INFO; the result is logged here, in one line.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return importlib.import_module("tilecache_daemon.schema.alembic_runner")


def _log_change(kind: str, what: str, result: MigrationResult) -> None:
    _log.info(
        "%s from %s to %s in %.2f s: %s (namespace %s)",
        what,
        result.from_revision or BASE,
        result.to_revision or BASE,
        result.elapsed_s,
        ", ".join(result.revisions_applied),
        TILE_NAMESPACE_UUID,
        extra=_structured(kind, result),
    )


def _log_no_change(result: MigrationResult) -> None:
    _log.info(
        "The schema is at %s, nothing to migrate (namespace %s)",
        result.to_revision or BASE,
        TILE_NAMESPACE_UUID,
        extra=_structured("schema_at_head", result),
    )


def _structured(kind: str, result: MigrationResult) -> dict[str, object]:
    """The kind and the facts of a JSON line (`logs.py`)."""
    facts = {
        "from_revision": result.from_revision or BASE,
        "to_revision": result.to_revision or BASE,
        "revisions": list(result.revisions_applied),
        "elapsed_s": round(result.elapsed_s, 3),
        "namespace_uuid": str(TILE_NAMESPACE_UUID),
    }
    return {"kind": kind, "kv": facts}
