"""The life of the embedded PostgreSQL: start, stop, crashes and restarts."""

import fcntl
import os
import select
import signal
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from tests.integration.postgres.conftest import NewServer
from tests.integration.postgres.parent_process import await_end, end, execute, run_parent
from tilecache_daemon.postgres.embedded import EmbeddedPostgres
from tilecache_daemon.postgres.errors import EmbeddedPostgresError


def test_it_starts_and_accepts_connections_at_its_dsn(new_server: NewServer) -> None:
    server = new_server()
    dsn = server.start()
    assert (dsn, True) == (server.dsn, server.is_running())
    assert execute(dsn, "SELECT current_database()") == [("tilecache",)]


def test_it_listens_only_on_a_socket_that_only_its_user_can_reach(new_server: NewServer) -> None:
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


def test_its_wal_is_compressed(new_server: NewServer) -> None:
    ((setting,),) = execute(new_server().start(), "SHOW wal_compression")
    assert setting != "off"


def test_its_data_survives_a_restart(new_server: NewServer) -> None:
    server = new_server()
    execute(server.start(), "CREATE TABLE kept AS SELECT 7 AS number")
    server.stop()
    assert not server.is_running()
    assert execute(server.start(), "SELECT number FROM kept") == [(7,)]


def test_stop_is_idempotent_and_needs_no_start(new_server: NewServer) -> None:
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


def test_two_servers_never_use_the_same_data(open_directory: Path, new_server: NewServer) -> None:
    parent = run_parent(open_directory)
    os.kill(parent.server_pid, signal.SIGSTOP)
    parent.process.kill()
    end(parent.process)
    try:
        with pytest.raises(EmbeddedPostgresError, match=r"an earlier PostgreSQL .* did not end"):
            EmbeddedPostgres(open_directory, start_timeout_s=0.1).start()
    finally:
        os.kill(parent.server_pid, signal.SIGCONT)
    assert execute(new_server().start(), "SELECT 1") == [(1,)]


def test_a_killed_server_is_restarted_with_the_committed_data(new_server: NewServer) -> None:
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


def test_killing_daemon_and_server_at_once_loses_nothing(
    open_directory: Path, new_server: NewServer
) -> None:
    parent = run_parent(open_directory)
    execute(parent.dsn, "CREATE TABLE kept AS SELECT 7 AS number")
    os.kill(parent.server_pid, signal.SIGKILL)
    parent.process.kill()
    end(parent.process)
    assert execute(new_server().start(), "SELECT number FROM kept") == [(7,)]


def test_a_pid_file_of_another_program_does_not_prevent_a_start(
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
    with pytest.raises(
        EmbeddedPostgresError, match=r"another daemon runs PostgreSQL .* state_directory"
    ):
        new_server().start()
    assert execute(dsn, "SELECT 1") == [(1,)]


def test_a_failed_start_says_why_and_leaves_nothing_running(
    open_directory: Path, new_server: NewServer
) -> None:
    broken = new_server(shared_buffers="plenty")
    with pytest.raises(EmbeddedPostgresError, match=r"shared_buffers.*plenty"):
        broken.start()
    assert not broken.is_running()
    assert execute(new_server().start(), "SELECT 1") == [(1,)]


def test_stop_aborts_a_waiting_start(open_directory: Path) -> None:
    directory = open_directory / "postgres"
    directory.mkdir(mode=0o700)
    failures: list[EmbeddedPostgresError] = []
    server = EmbeddedPostgres(open_directory)

    def start() -> None:
        try:
            server.start()
        except EmbeddedPostgresError as error:
            failures.append(error)

    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=start)
        thread.start()
        while thread.is_alive():
            server.stop()
            thread.join(0.01)
    finally:
        os.close(lock)
    assert "was stopped while it was starting" in str(failures[0])
