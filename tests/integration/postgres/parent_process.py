"""A process that runs an embedded PostgreSQL, as the daemon does."""

import os
import select
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import psycopg

DEADLINE_S = 60

PARENT = """
import sys
from pathlib import Path
from tilecache_daemon.postgres.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]), settings={"fsync": "off"})
server.start()
print(server.server_pid, server.dsn, flush=True)
sys.stdin.read()
server.stop()
"""


class Parent(NamedTuple):
    """The process, and its server."""

    process: subprocess.Popen[str]
    server_pid: int
    dsn: str


def run_parent(directory: Path, *prefix: str) -> Parent:
    process = start_parent(directory, *prefix)
    assert process.stdout is not None
    pid, dsn = process.stdout.readline().split(maxsplit=1)
    return Parent(process, int(pid), dsn)


def start_parent(directory: Path, *prefix: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [*prefix, sys.executable, "-c", PARENT, str(directory)]
    return subprocess.Popen(command, cwd="/", stdin=pipe, stdout=pipe, text=True)


def end(process: subprocess.Popen[str]) -> int:
    """Lets a parent process end gracefully, unless it has ended; returns its exit status."""
    process.communicate(timeout=DEADLINE_S)
    return process.returncode


def await_end(pid: int) -> None:
    """Waits until a process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], DEADLINE_S)[0], f"process {pid} does not end"
    finally:
        os.close(descriptor)


def execute(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []
