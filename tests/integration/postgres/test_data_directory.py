"""The files of the embedded PostgreSQL: owner, version and paths."""

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.integration.postgres.conftest import NewServer
from tests.integration.postgres.parent_process import (
    DEADLINE_S,
    await_end,
    end,
    execute,
    run_parent,
    start_parent,
)
from tilecache_daemon.postgres.binaries import find_binaries
from tilecache_daemon.postgres.errors import EmbeddedPostgresError
from tilecache_daemon.postgres.launcher import ServerUser, wrap_command

NOBODY = 65534


def await_path(path: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not created"
        time.sleep(0.001)


def test_data_of_a_version_without_binaries_is_refused_and_kept(
    open_directory: Path, new_server: NewServer
) -> None:
    server = new_server()
    execute(server.start(), "CREATE TABLE kept AS SELECT 7 AS number")
    server.stop()
    version_file = open_directory / "postgres/data/PG_VERSION"
    version = version_file.read_text()
    version_file.write_text("9\n")
    with pytest.raises(
        EmbeddedPostgresError, match=r"belongs to PostgreSQL 9.*install PostgreSQL 9"
    ):
        server.start()
    version_file.write_text(version)
    assert execute(server.start(), "SELECT number FROM kept") == [(7,)]


def test_data_of_another_version_is_run_by_the_binaries_of_that_version(
    open_directory: Path, new_server: NewServer
) -> None:
    server = new_server()
    server.start()
    server.stop()
    data = open_directory / "postgres/data"
    owner = data.stat()
    user = ServerUser(owner.st_uid, owner.st_gid)
    preferred, *others = find_binaries(user, open_directory)
    if not (others := [found for found in others if found.major != preferred.major]):
        pytest.skip(f"only PostgreSQL {preferred.major} is installed")
    other = others[0]
    shutil.rmtree(data)
    initdb = [str(other.directory / "initdb"), "-D", str(data), "-U", "tilecache", "--no-sync"]
    subprocess.run(wrap_command(initdb, user), cwd="/", check=True, capture_output=True)
    assert execute(server.start(), "SELECT current_setting('server_version_num')::int / 10000") == [
        (other.major,)
    ]


def test_a_directory_without_postgresql_data_is_refused_and_kept(
    open_directory: Path, new_server: NewServer
) -> None:
    notes = open_directory / "postgres/data/notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    with pytest.raises(EmbeddedPostgresError, match="not a PostgreSQL data directory"):
        new_server().start()
    assert notes.read_text() == "mine"


def test_a_killed_initialization_can_be_repeated(
    open_directory: Path, new_server: NewServer
) -> None:
    parent = start_parent(open_directory)
    await_path(open_directory / "postgres/data.new/PG_VERSION")
    parent.kill()
    end(parent)
    assert not (open_directory / "postgres/data").exists()
    assert execute(new_server().start(), "SELECT 1") == [(1,)]


def test_a_state_directory_that_cannot_be_created_is_named(new_server: NewServer) -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"/dev/null/tilecache.*state_directory"):
        new_server(Path("/dev/null/tilecache")).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the user")
def test_a_state_directory_that_the_servers_user_cannot_enter_is_explained(
    open_directory: Path, new_server: NewServer
) -> None:
    closed = open_directory / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedPostgresError, match="does not run as root, but as"):
        new_server(closed / "state").start()


@pytest.mark.parametrize("name", ["d" * 80 + "/" + "e" * 80, "d, e"], ids=["long", "comma"])
def test_a_path_that_cannot_hold_a_socket_works(
    name: str, open_directory: Path, new_server: NewServer
) -> None:
    server = new_server(open_directory / name)
    execute(server.start(), "CREATE TABLE kept AS SELECT 7 AS number")
    socket_directory = Path(str(conninfo_to_dict(server.dsn)["host"]))
    assert stat.S_IMODE(socket_directory.stat().st_mode) == 0o700
    server.stop()
    assert not socket_directory.exists()
    assert execute(server.start(), "SELECT number FROM kept") == [(7,)]
    assert (open_directory / name / "postgres/data/PG_VERSION").exists()


def test_the_server_is_never_root(open_directory: Path, new_server: NewServer) -> None:
    server = new_server()
    server.start()
    assert Path(f"/proc/{server.server_pid}").stat().st_uid != 0
    assert (open_directory / "postgres").stat().st_uid != 0


def test_an_unprivileged_user_can_run_it(open_directory: Path) -> None:
    parent = run_parent(open_directory, *as_nobody(open_directory))
    assert Path(f"/proc/{parent.process.pid}").stat().st_uid != 0
    assert execute(parent.dsn, "SELECT 1") == [(1,)]
    assert end(parent.process) == 0
    await_end(parent.server_pid)


def test_killing_an_unprivileged_users_daemon_ends_its_server(open_directory: Path) -> None:
    parent = run_parent(open_directory, *as_nobody(open_directory))
    parent.process.kill()
    end(parent.process)
    await_end(parent.server_pid)


def as_nobody(directory: Path) -> list[str]:
    """The prefix that runs a command as an unprivileged user, who becomes the directory's owner."""
    if os.geteuid() != 0:
        return []
    os.chown(directory, NOBODY, NOBODY)
    prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # Not Python itself: setpriv drops its capabilities only after it has found the program.
    if subprocess.run([*prefix, "test", "-x", sys.executable], check=False).returncode == 0:
        return prefix
    # Python is below a home directory without access: allow searching and reading only.
    return [*prefix, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
