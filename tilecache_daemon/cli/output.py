"""Shared by the commands: connecting to the daemon, output, exit codes."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.paths import ADMIN_SOCKET_NAME, SOCKET_NAME, default_socket_path

_ADMIN_VARIABLE: Final = "TILECACHE_ADMIN_SOCKET_PATH"

Command = TypeVar("Command", bound=Callable[..., Any])

DSN_HELP: Final = (
    "PostgreSQL address: a libpq connection string or URL. The process list shows it to all "
    "users, so put a password into the environment, the configuration file or a passfile."
)


class ExitCode(IntEnum):
    """The exit codes that `tilecache --help` documents."""

    DONE = 0
    IN_PART = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    FAILED = 5


def fail(code: ExitCode, message: str) -> NoReturn:
    """Prints an error to stderr and exits."""
    click.echo(f"tilecache: {message}", err=True)
    sys.exit(code)


def socket_option(command: Command) -> Command:
    """Adds `--socket`, the socket for all clients."""
    return _socket_option(SOCKET_NAME, "TILECACHE_SOCKET_PATH", "The daemon's socket.")(command)


def admin_socket_option(command: Command) -> Command:
    """Adds `--socket`, the admin socket."""
    return _socket_option(ADMIN_SOCKET_NAME, _ADMIN_VARIABLE, "The daemon's admin socket.")(command)


def default_admin_socket_path() -> Path:
    """What `--socket` of a command on the admin socket is by default."""
    given = os.environ.get(_ADMIN_VARIABLE)
    return Path(given) if given else default_socket_path(ADMIN_SOCKET_NAME)


def second_socket_option(command: Command) -> Command:
    """Adds `--admin-socket`, for a command that mainly uses the other one; the command gets
    `admin_socket_path`, which may be None."""
    return click.option(
        "--admin-socket",
        "admin_socket_path",
        type=click.Path(path_type=Path),
        envvar="TILECACHE_ADMIN_SOCKET_PATH",
        help="The daemon's admin socket.  [default: $TILECACHE_ADMIN_SOCKET_PATH, else "
        f"{ADMIN_SOCKET_NAME} beside --socket]",
    )(command)


def _socket_option(name: str, variable: str, text: str) -> Callable[[Command], Command]:
    return click.option(
        "--socket",
        "socket_path",
        type=click.Path(path_type=Path),
        envvar=variable,
        default=lambda: default_socket_path(name),
        show_default=f"${variable}, else that of the user's daemon, else the system's",
        help=text,
    )


def json_option(command: Command) -> Command:
    """Adds `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


@contextmanager
def connect(socket_path: Path) -> Iterator[TileCacheClient]:
    """A client of the daemon. A failed call ends the command with its exit code."""
    if not socket_path.exists():
        fail(
            ExitCode.UNREACHABLE,
            f"{socket_path}: no such socket. Is the daemon running? "
            "Start it with `tilecache serve`, or give its socket with --socket.",
        )
    with TileCacheClient(socket_path) as client:
        try:
            yield client
        except CallError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                fail(ExitCode.IN_PART, error.message)
            if error.code is grpc.StatusCode.UNAVAILABLE:
                fail(ExitCode.UNREACHABLE, f"{socket_path}: {error.message}")
            fail(ExitCode.REFUSED, error.message)


def message_to_dict(message: Message, *, zeros: bool = False) -> dict[str, Any]:
    """A message as JSON: field names as in the .proto, enums by name.

    `zeros`: include fields that are 0, false or empty.
    """
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=zeros
    )


def print_json(value: object) -> None:
    """Prints a JSON document to stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_json_line(value: object) -> None:
    """Prints one line of JSON Lines to stdout."""
    click.echo(json.dumps(value, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Prints a table to stdout."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text: brackets in a path must not be parsed as markup.
        table.add_row(*(Text(str(cell)) for cell in row))
    Console().print(table)
