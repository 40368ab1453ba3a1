"""Sizes in bytes, as people write and read them."""

from collections.abc import Callable
from typing import Final

import click
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.filesize import decimal

from tilecache_daemon.cli.output import Command

_MOST: Final = (1 << 63) - 1
_BYTE_SIZE: Final = TypeAdapter(ByteSize)


def size_option(name: str, text: str) -> Callable[[Command], Command]:
    """An option whose value is a size: 500MB (decimal), 2GiB (binary) or a number of bytes."""
    return click.option(name, metavar="SIZE", callback=_parse, help=text)


def _parse(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        size_bytes = int(_BYTE_SIZE.validate_python(value))
    except ValidationError:
        raise click.BadParameter(f"{value!r} is no size such as 500MB or 2GiB") from None
    if size_bytes > _MOST:
        raise click.BadParameter(f"{value!r} is more than there can be")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """A size for people, in decimal units."""
    return decimal(size_bytes)


def format_tiles(count: int, size_bytes: int) -> str:
    """A number of tiles and their size, for people."""
    return f"{count:,} {'tile' if count == 1 else 'tiles'} ({format_size(size_bytes)})"
