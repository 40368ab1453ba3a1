"""What the commands share: how they reach the daemon, what they print, how they exit."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

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

Command = TypeVar("Command", bound=Callable[..., Any])


class ExitCode(IntEnum):
    """How a command ends; the numbers are promised in `tilecache --help`."""

    DONE = 0
    IN_PART = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    FAILED = 5


def fail(code: ExitCode, message: str) -> NoReturn:
    """Says on stderr what went wrong and exits."""
    click.echo(f"tilecache: {message}", err=True)
    sys.exit(code)


def socket_option(command: Command) -> Command:
    """Adds `--socket`: where the navigation process calls."""
    return _socket_option(SOCKET_NAME, "TILECACHE_SOCKET_PATH", "The daemon's socket.")(command)


def admin_socket_option(command: Command) -> Command:
    """Adds `--socket`: where the administrator calls."""
    return _socket_option(
        ADMIN_SOCKET_NAME, "TILECACHE_ADMIN_SOCKET_PATH", "The daemon's socket for administrators."
    )(command)


def _socket_option(name: str, variable: str, text: str) -> Callable[[Command], Command]:
    return click.option(
        "--socket",
        "socket_path",
        type=click.Path(path_type=Path),
        envvar=variable,
        default=lambda: default_socket_path(name),
        show_default=f"${variable}, else the user's own daemon's, else the system's",
        help=text,
    )


def json_option(command: Command) -> Command:
    """Adds `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


@contextmanager
def connect(socket_path: Path) -> Iterator[TileCacheClient]:
    """A client of the daemon; a call that fails ends the command with its exit code."""
    if not socket_path.exists():
        fail(
            ExitCode.UNREACHABLE,
            f"{socket_path}: there is no socket; is the daemon running? "
            "Start it with `tilecache serve`, or name its socket with --socket.",
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
    """A message as JSON for programs: the field names of the .proto, enums by name.

    `zeros`: also fields that are 0, false or empty.
    """
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=zeros
    )


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_json_line(value: object) -> None:
    """One of many JSON documents on stdout, a line each."""
    click.echo(json.dumps(value, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """A table for people on stdout."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # As Text, because brackets in a path are no markup.
        table.add_row(*(Text(str(cell)) for cell in row))
    Console().print(table)
