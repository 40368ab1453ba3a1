"""`tilecache migrate`: the database schema, migrated manually."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from tilecache.identity import TILE_NAMESPACE_UUID
from tilecache_daemon.cli.output import DSN_HELP, ExitCode, fail, json_option, print_json
from tilecache_daemon.cli.sizes import format_size
from tilecache_daemon.config import Config, ConfigError, load_config
from tilecache_daemon.schema import migrator as schema

Command = Callable[..., Any]


@click.group(
    epilog="Exit codes: 0 success; 1 the confirmation was declined; 2 wrong usage, or no database "
    "configured; 3 the database does not answer; 5 the migration failed. A failed migration "
    "changes nothing.",
)
def migrate_command() -> None:
    """Upgrade, downgrade or show the database schema.

    `tilecache serve` upgrades the schema when it starts. Use these commands to
    upgrade it beforehand, to show its state, or to downgrade it. A migration is one
    transaction. If several start at once, one runs and the others wait.

    The database is --dsn, else `dsn` of the configuration, else $DB_URL.
    """


def database_options(command: Command) -> Command:
    """Adds `--dsn` and `--config`."""
    for option in (
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            show_default="$TILECACHE_CONFIG, else /etc/tilecache/tilecache.toml if it exists",
            help="The daemon's configuration file.",
        ),
        click.option(
            "--dsn",
            metavar="DSN",
            show_default="dsn of the configuration, else $DB_URL",
            help=DSN_HELP,
        ),
    ):
        command = option(command)
    return command


@migrate_command.command()
@database_options
def up(dsn: str | None, config_file: Path | None) -> None:
    """Upgrade the schema to the newest revision.

    Prints the applied revisions on stderr. Does nothing if the schema is up to date.
    Refuses a database that a newer version has migrated.
    """
    config = _load_config(dsn, config_file)
    with _reporting():
        schema.apply_migrations(config)


@migrate_command.command()
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@database_options
def down(revision: str, yes: bool, dsn: str | None, config_file: Path | None) -> None:
    """Downgrade the schema to REVISION; `base` removes everything.

    The tables and columns of later revisions are dropped, with their data. Make a
    backup first (pg_dump). Stop the daemon first, unless the database is the
    daemon's own PostgreSQL. Asks for confirmation; without a terminal, --yes is
    required.
    """
    config = _load_config(dsn, config_file)
    with _reporting():
        if not yes:
            _confirm_down(config, revision)
        schema.downgrade(_dsn(config), revision, config.migration_lock_timeout_s)


@migrate_command.command()
@json_option
@database_options
def current(as_json: bool, dsn: str | None, config_file: Path | None) -> None:
    """Show the revision of the database, and the pending revisions."""
    config = _load_config(dsn, config_file)
    with _reporting():
        revision = schema.current_revision(_dsn(config))
        pending = schema.pending_revisions(revision)
    if as_json:
        print_json(
            {
                "current_revision": revision,
                "head_revision": schema.HEAD_REVISION,
                "pending_revisions": pending,
                "namespace_uuid": str(TILE_NAMESPACE_UUID),
            }
        )
    else:
        state = f"pending: {', '.join(pending)}" if pending else "up to date"
        click.echo(f"{revision or schema.BASE} ({state})")


@migrate_command.command()
@json_option
@database_options
def plan(as_json: bool, dsn: str | None, config_file: Path | None) -> None:
    """Show the SQL that `up` would run. Changes nothing.

    The output is for review, not for psql. Where `up` computes values for existing
    rows, it has only a comment. Time and disk space are estimated from the size of the
    table; on a slow disk it takes longer.
    """
    config = _load_config(dsn, config_file)
    with _reporting():
        revisions = schema.plan_migrations(_dsn(config))
    if as_json:
        print_json([revision._asdict() for revision in revisions])
    elif revisions:
        steps = (f"-- {step.revision}: {step.doc}\n\n{step.sql}" for step in revisions)
        click.echo(_describe_cost(revisions))
        click.echo("\n\n\n".join(("BEGIN;", *steps, "COMMIT;")))
    else:
        click.echo(f"-- Nothing to do: the schema is at {schema.HEAD_REVISION}.")


def _describe_cost(revisions: list[schema.PlannedRevision]) -> str:
    seconds = sum(step.estimated_s for step in revisions)
    space = format_size(sum(step.estimated_bytes for step in revisions))
    return (
        f"-- Takes about {max(1, round(seconds))} s, during which the tables are locked,\n"
        f"-- and about {space} of disk space, and as much for the write-ahead log."
    )


def _load_config(dsn: str | None, config_file: Path | None) -> Config:
    try:
        config = load_config(config_file, {"dsn": dsn})
    except ConfigError as error:
        fail(ExitCode.USAGE, str(error))
    if not config.dsn:
        fail(
            ExitCode.USAGE,
            "no database is configured: use --dsn, set `dsn` in the configuration, or set $DB_URL. "
            "(The daemon's own PostgreSQL needs no manual migration: `tilecache serve` migrates "
            "it.)",
        )
    return config


def _dsn(config: Config) -> str:
    assert config.dsn
    return config.dsn


def _confirm_down(config: Config, revision: str) -> None:
    if not sys.stdin.isatty():
        fail(ExitCode.USAGE, "there is no terminal to ask for confirmation; use --yes")
    before = schema.current_revision(_dsn(config)) or schema.BASE
    click.confirm(
        f"This downgrades the schema from {before} to {revision}. "
        "The data that the later revisions store is lost. Continue?",
        abort=True,
        err=True,
    )


@contextmanager
def _reporting() -> Iterator[None]:
    """Logs to stderr. A failure ends the command with its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        yield
    except schema.DatabaseUnreachableError as error:
        fail(ExitCode.UNREACHABLE, str(error))
    except schema.MigrationError as error:
        fail(ExitCode.FAILED, str(error))
