"""The daemon's own PostgreSQL: its life, and what outlives whom."""

import fcntl
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tilecache_daemon.postgres.binaries import find_binaries
from tilecache_daemon.postgres.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tilecache_daemon.postgres.launcher import ServerUser, launched

DEADLINE_S = 60
NOBODY = 65534
NO_FSYNC = {"fsync": "off"}  # Only a machine without power would lose by it.

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

NewServer = Callable[..., EmbeddedPostgres]


class Parent(NamedTuple):
    """A process with a server of its own."""

    process: subprocess.Popen[str]
    server_pid: int
    dsn: str


@pytest.fixture
def new_server(open_directory: Path) -> Iterator[NewServer]:
    """Makes servers, by default in `open_directory`, and stops them at the end."""
    with ExitStack() as stack:

        def make(directory: Path = open_directory, **settings: str) -> EmbeddedPostgres:
            server = EmbeddedPostgres(directory, settings={**NO_FSYNC, **settings})
            stack.callback(server.stop)
            return server

        yield make


def execute(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def await_end(pid: int) -> None:
    """Returns when a process is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], DEADLINE_S)[0], f"process {pid} lives on"
    finally:
        os.close(descriptor)


def await_path(path: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.001)


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
    """Lets a parent end in good order, unless it has ended; gives its exit status."""
    process.communicate(timeout=DEADLINE_S)
    return process.returncode


def test_it_starts_and_answers_at_its_dsn(new_server: NewServer) -> None:
    server = new_server()
    dsn = server.start()
    assert (dsn, True) == (server.dsn, server.is_running())
    assert execute(dsn, "SELECT current_database()") == [("tilecache",)]


def test_it_listens_only_on_a_socket_that_its_user_alone_can_reach(new_server: NewServer) -> None:
    dsn = new_server().start()
    ((addresses, directory),) = execute(
        dsn,
        "SELECT current_setting('listen_addresses'), current_setting('unix_socket_directories')",
    )
    assert addresses == ""
    assert stat.S_IMODE(Path(str(directory)).stat().st_mode) == 0o700


def test_a_commit_does_not_return_before_it_is_on_disk(open_directory: Path) -> None:
    server = EmbeddedPostgres(open_directory)
    try:
        server.start()
        for setting in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums"):
            assert execute(server.dsn, f"SHOW {setting}") == [("on",)]
    finally:
        server.stop()


def test_the_pages_in_its_log_are_compressed(new_server: NewServer) -> None:
    ((setting,),) = execute(new_server().start(), "SHOW wal_compression")
    assert setting != "off"


def test_it_keeps_its_data_over_stop_and_start(new_server: NewServer) -> None:
    server = new_server()
    execute(server.start(), "CREATE TABLE kept AS SELECT 7 AS number")
    server.stop()
    assert not server.is_running()
    assert execute(server.start(), "SELECT number FROM kept") == [(7,)]


def test_stop_may_be_called_again_and_without_a_start(new_server: NewServer) -> None:
    server = new_server()
    server.stop()
    server.start()
    server.stop()
    server.stop()
    assert server.restart_if_dead() is False
    with pytest.raises(EmbeddedPostgresError, match="not started"):
        _ = server.dsn


def test_it_outlives_the_thread_that_starts_it(new_server: NewServer) -> None:
    server = new_server()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    assert server.server_pid is not None
    descriptor = os.pidfd_open(server.server_pid)
    try:
        assert not select.select([descriptor], [], [], 0.5)[0]
    finally:
        os.close(descriptor)
    assert execute(server.dsn, "SELECT 1") == [(1,)]


def test_killing_the_daemon_ends_its_server_and_loses_nothing(
    open_directory: Path, new_server: NewServer
) -> None:
    parent = run_parent(open_directory)
    execute(parent.dsn, "CREATE TABLE kept AS SELECT 7 AS number")
    parent.process.kill()
    end(parent.process)
    await_end(parent.server_pid)
    assert execute(new_server().start(), "SELECT number FROM kept") == [(7,)]


def test_two_servers_are_never_at_the_same_data(
    open_directory: Path, new_server: NewServer
) -> None:
    parent = run_parent(open_directory)
    os.kill(parent.server_pid, signal.SIGSTOP)
    parent.process.kill()
    end(parent.process)
    try:
        with pytest.raises(EmbeddedPostgresError, match=r"an earlier PostgreSQL .* does not end"):
            EmbeddedPostgres(open_directory, start_timeout_s=0.1).start()
    finally:
        os.kill(parent.server_pid, signal.SIGCONT)
    assert execute(new_server().start(), "SELECT 1") == [(1,)]


def test_a_killed_server_comes_back_with_what_was_committed(new_server: NewServer) -> None:
    server = new_server()
    dsn = server.start()
    assert server.restart_if_dead() is False
    execute(dsn, "CREATE TABLE kept AS SELECT 7 AS number")
    killed = server.server_pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    await_end(killed)
    assert not server.is_running()
    assert server.restart_if_dead() is True
    assert server.dsn == dsn
    assert execute(dsn, "SELECT number FROM kept") == [(7,)]


def test_daemon_and_server_killed_at_once_lose_nothing(
    open_directory: Path, new_server: NewServer
) -> None:
    parent = run_parent(open_directory)
    execute(parent.dsn, "CREATE TABLE kept AS SELECT 7 AS number")
    os.kill(parent.server_pid, signal.SIGKILL)
    parent.process.kill()
    end(parent.process)
    assert execute(new_server().start(), "SELECT number FROM kept") == [(7,)]


def test_a_pid_file_that_names_another_program_after_a_power_cut_does_no_harm(
    open_directory: Path, new_server: NewServer
) -> None:
    server = new_server()
    server.start()
    pid_file = open_directory / "postgres/data/postmaster.pid"
    content = pid_file.read_text()
    server.stop()
    owner = pid_file.parent.stat()
    user = owner.st_uid if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "infinity"], cwd="/", user=user) as other:
        try:
            pid_file.write_text(content.replace(content.split()[0], str(other.pid), 1))
            os.chown(pid_file, owner.st_uid, owner.st_gid)
            assert execute(server.start(), "SELECT 1") == [(1,)]
        finally:
            other.kill()


def test_a_second_server_on_the_same_directory_is_refused(new_server: NewServer) -> None:
    dsn = new_server().start()
    with pytest.raises(EmbeddedPostgresError, match=r"another daemon uses .* state_directory"):
        new_server().start()
    assert execute(dsn, "SELECT 1") == [(1,)]


def test_data_of_a_version_without_programs_is_refused_and_left_alone(
    open_directory: Path, new_server: NewServer
) -> None:
    server = new_server()
    execute(server.start(), "CREATE TABLE kept AS SELECT 7 AS number")
    server.stop()
    version_file = open_directory / "postgres/data/PG_VERSION"
    version = version_file.read_text()
    version_file.write_text("9\n")
    with pytest.raises(EmbeddedPostgresError, match=r"of PostgreSQL 9.*install PostgreSQL 9"):
        server.start()
    version_file.write_text(version)
    assert execute(server.start(), "SELECT number FROM kept") == [(7,)]


def test_a_directory_that_is_not_postgresqls_is_refused_and_left_alone(
    open_directory: Path, new_server: NewServer
) -> None:
    strange = open_directory / "postgres/data/notes.txt"
    strange.parent.mkdir(parents=True)
    strange.write_text("mine")
    with pytest.raises(EmbeddedPostgresError, match="not PostgreSQL's data"):
        new_server().start()
    assert strange.read_text() == "mine"


def test_an_initialization_that_was_killed_can_be_run_again(
    open_directory: Path, new_server: NewServer
) -> None:
    parent = start_parent(open_directory)
    await_path(open_directory / "postgres/data.new/PG_VERSION")
    parent.kill()
    end(parent)
    assert not (open_directory / "postgres/data").exists()
    assert execute(new_server().start(), "SELECT 1") == [(1,)]


def test_a_failed_start_says_why_and_leaves_nothing_running(
    open_directory: Path, new_server: NewServer
) -> None:
    broken = new_server(shared_buffers="plenty")
    with pytest.raises(EmbeddedPostgresError, match=r"shared_buffers.*plenty"):
        broken.start()
    assert not broken.is_running()
    assert execute(new_server().start(), "SELECT 1") == [(1,)]


def test_a_state_directory_that_cannot_be_made_is_named(new_server: NewServer) -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"/dev/null/tilecache.*state_directory"):
        new_server(Path("/dev/null/tilecache")).start()


def test_stop_gives_up_a_start_that_waits(open_directory: Path) -> None:
    held = open_directory / "postgres"
    held.mkdir(mode=0o700)
    failures: list[EmbeddedPostgresError] = []
    server = EmbeddedPostgres(open_directory)

    def start() -> None:
        try:
            server.start()
        except EmbeddedPostgresError as error:
            failures.append(error)

    lock = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=start)
        thread.start()
        while thread.is_alive():
            server.stop()
            thread.join(0.01)
    finally:
        os.close(lock)
    assert "told to stop" in str(failures[0])


@pytest.mark.parametrize("name", ["d" * 80 + "/" + "e" * 80, "d, e"], ids=["long", "comma"])
def test_a_path_that_cannot_be_a_sockets_works(
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


def test_an_ordinary_user_can_run_it(open_directory: Path) -> None:
    parent = run_parent(open_directory, *as_nobody(open_directory))
    assert Path(f"/proc/{parent.process.pid}").stat().st_uid != 0
    assert execute(parent.dsn, "SELECT 1") == [(1,)]
    assert end(parent.process) == 0
    await_end(parent.server_pid)


def test_killing_an_ordinary_users_daemon_ends_its_server(open_directory: Path) -> None:
    parent = run_parent(open_directory, *as_nobody(open_directory))
    parent.process.kill()
    end(parent.process)
    await_end(parent.server_pid)


def as_nobody(directory: Path) -> list[str]:
    """What to put before a command to run it as an ordinary user, who gets the directory."""
    if os.geteuid() != 0:
        return []
    os.chown(directory, NOBODY, NOBODY)
    prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # Not Python itself: setpriv loses its own powers only after it has found the program.
    if subprocess.run([*prefix, "test", "-x", sys.executable], check=False).returncode == 0:
        return prefix
    # This Python lies below a closed home: the user may search and read there, and no more.
    return [*prefix, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def test_data_of_another_version_gets_the_programs_of_that_version(
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
        pytest.skip(f"PostgreSQL {preferred.major} is the only one on this machine")
    other = others[0]
    shutil.rmtree(data)
    initdb = [str(other.directory / "initdb"), "-D", str(data), "-U", "tilecache", "--no-sync"]
    subprocess.run(launched(initdb, user), cwd="/", check=True, capture_output=True)
    assert execute(server.start(), "SELECT current_setting('server_version_num')::int / 10000") == [
        (other.major,)
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a user to change from")
def test_a_state_directory_closed_to_the_servers_user_is_named_as_the_reason(
    open_directory: Path, new_server: NewServer
) -> None:
    closed = open_directory / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedPostgresError, match="does not run as root, but as"):
        new_server(closed / "state").start()
