"""`tilecache migrate`: the database's schema, by hand."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from tilecache.identity import TILE_NAMESPACE_UUID
from tilecache_daemon.cli.output import ExitCode, fail, json_option, print_json
from tilecache_daemon.config import Config, ConfigError, load_config
from tilecache_daemon.schema import migrator as schema

Command = Callable[..., Any]


@click.group(
    epilog="Exit codes: 0 done, 2 wrong usage or no database named, 3 the database does not "
    "answer, 5 the migration failed. A migration that fails has changed nothing.",
)
def migrate_command() -> None:
    """Bring the database's schema up to date, or see what that would do.

    `tilecache serve` does this by itself when it starts; these commands are for
    doing it beforehand, for looking, and for going back. Each migration is one
    transaction, and of several at once one migrates while the others wait.

    The database is --dsn, else `dsn` of the configuration, else $DB_URL.
    """


def database_options(command: Command) -> Command:
    """Adds `--dsn` and `--config`."""
    for option in (
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            show_default="$TILECACHE_CONFIG, else /etc/tilecache/tilecache.toml",
            help="The daemon's configuration.",
        ),
        click.option(
            "--dsn",
            metavar="DSN",
            show_default="the configuration's, else $DB_URL",
            help="The database: a libpq connection string or URL. All users see it in the "
            "process list: a password belongs into the environment, the file, or a passfile.",
        ),
    ):
        command = option(command)
    return command


@migrate_command.command()
@database_options
def up(dsn: str | None, config_file: Path | None) -> None:
    """Upgrade the schema to the newest revision.

    Says on stderr what was applied. Does nothing to a database that is up to
    date, and refuses one that a newer version has migrated.
    """
    config = _load_config(dsn, config_file)
    with _reporting():
        schema.apply_migrations(config)


@migrate_command.command()
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Do not ask.")
@database_options
def down(revision: str, yes: bool, dsn: str | None, config_file: Path | None) -> None:
    """Take the schema back to REVISION, which stays; `base` takes back everything.

    What the later revisions brought, with the data in it, is lost. Stop the
    daemon before; make a backup (pg_dump). Asks first; where there is no
    terminal to ask on, --yes is needed.
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
    """Show which revision the database is at, and which are pending."""
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
        todo = f"pending: {', '.join(pending)}" if pending else "up to date"
        click.echo(f"{revision or schema.BASE} ({todo})")


@migrate_command.command()
@json_option
@database_options
def plan(as_json: bool, dsn: str | None, config_file: Path | None) -> None:
    """Show the SQL that `up` would run now. Changes nothing.

    To be read, not to be fed to psql: where rows have to be filled in, the SQL
    says so in a comment, and `up` does it.
    """
    config = _load_config(dsn, config_file)
    with _reporting():
        revisions = schema.plan_migrations(_dsn(config))
    if as_json:
        print_json([revision._asdict() for revision in revisions])
    elif revisions:
        steps = (f"-- {step.revision}: {step.doc}\n\n{step.sql}" for step in revisions)
        click.echo("\n\n\n".join(("BEGIN;", *steps, "COMMIT;")))
    else:
        click.echo(f"-- Nothing to do: the schema is at {schema.HEAD_REVISION}.")


def _load_config(dsn: str | None, config_file: Path | None) -> Config:
    try:
        config = load_config(config_file, {"dsn": dsn})
    except ConfigError as error:
        fail(ExitCode.USAGE, str(error))
    if not config.dsn:
        fail(
            ExitCode.USAGE,
            "no database is named: give --dsn, or set `dsn` in the configuration, or $DB_URL. "
            "(A PostgreSQL that the daemon runs itself needs no migrating by hand: "
            "`tilecache serve` does it.)",
        )
    return config


def _dsn(config: Config) -> str:
    assert config.dsn
    return config.dsn


def _confirm_down(config: Config, revision: str) -> None:
    if not sys.stdin.isatty():
        fail(ExitCode.USAGE, "there is no terminal to ask on; give --yes to go back all the same")
    before = schema.current_revision(_dsn(config)) or schema.BASE
    click.confirm(
        f"This takes the schema back from {before} to {revision}; "
        "what was stored in what came between is lost. Go on?",
        abort=True,
        err=True,
    )


@contextmanager
def _reporting() -> Iterator[None]:
    """Tells on stderr what is done; a failure ends the command with its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        yield
    except schema.DatabaseUnreachableError as error:
        fail(ExitCode.UNREACHABLE, str(error))
    except schema.MigrationError as error:
        fail(ExitCode.FAILED, str(error))
