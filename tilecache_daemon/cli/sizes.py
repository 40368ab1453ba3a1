"""Sizes in bytes and counts, as people read and write them."""

from collections.abc import Callable
from typing import Final

import click
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.filesize import decimal

from tilecache_daemon.cli.output import Command

_MAX_BYTES: Final = (1 << 63) - 1
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
        raise click.BadParameter(f"{value!r} is not a size such as 500MB or 2GiB") from None
    if size_bytes > _MAX_BYTES:
        raise click.BadParameter(f"{value!r} is more than the maximum of {_MAX_BYTES} bytes")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """A size in decimal units."""
    return decimal(size_bytes)


def format_count(count: int, noun: str) -> str:
    """A number with its noun, which gets an s in the plural."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_tiles(count: int, size_bytes: int) -> str:
    """A number of tiles and their size."""
    return f"{format_count(count, 'tile')} ({format_size(size_bytes)})"
