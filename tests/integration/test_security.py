"""Access to sockets and directories by other users. Requires root."""

import grp
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon_process import DaemonProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users")

STRANGER_UID = 54_321
STRANGER_GID = 54_321
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"

CALL = f"""
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(10)
    client.connect(sys.argv[1])
    client.sendall({HTTP2_PREFACE!r})
    print("answered" if client.recv(9) else "hung up")
"""
OPEN = "import sys; open(sys.argv[1]).close(); print('opened')"
DENIED = "Permission denied"


def run_as_stranger(python: str, program: str, path: Path, *groups: int) -> str:
    """Runs a program as an unknown user; returns its output, or its error."""
    finished = subprocess.run(
        [python, "-I", "-c", program, path],
        user=STRANGER_UID,
        group=STRANGER_GID,
        extra_groups=groups,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return finished.stdout.strip() or finished.stderr.strip().rpartition("] ")[2].partition(":")[0]


@pytest.fixture(scope="module")
def python() -> str:
    """A Python that every user can run, which that of a virtual environment may not be."""
    for candidate in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            run_as_stranger(candidate, "", Path("/"))
        except OSError:
            continue
        return candidate
    pytest.skip("no Python can be run by every user")


@pytest.fixture(scope="module")
def groups() -> tuple[int, int]:
    """A group for the navigation process and one for the administrator."""
    navigation, administration = (group.gr_gid for group in grp.getgrall()[1:3])
    return navigation, administration


@pytest.fixture(scope="module")
def guarded(shared_database: str, groups: tuple[int, int]) -> Iterator[DaemonProcess]:
    """A daemon whose sockets have different groups."""
    navigation, administration = (grp.getgrgid(gid).gr_name for gid in groups)
    with tempfile.TemporaryDirectory(prefix="tilecache-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        with DaemonProcess(
            directory,
            dsn=shared_database,
            socket_group=navigation,
            admin_socket_mode="0660",
            admin_socket_group=administration,
            metrics_address=directory / "metrics.sock",
        ) as process:
            yield process


def test_the_navigation_group_can_open_only_its_socket(
    guarded: DaemonProcess, groups: tuple[int, int], python: str
) -> None:
    navigation, _ = groups
    metrics = guarded.socket_path.with_name("metrics.sock")
    assert run_as_stranger(python, CALL, guarded.socket_path, navigation) == "answered"
    assert run_as_stranger(python, CALL, metrics, navigation) == "answered"
    assert run_as_stranger(python, CALL, guarded.admin_socket_path, navigation) == DENIED


def test_the_administration_group_can_open_only_its_socket(
    guarded: DaemonProcess, groups: tuple[int, int], python: str
) -> None:
    _, administration = groups
    assert run_as_stranger(python, CALL, guarded.admin_socket_path, administration) == "answered"
    assert run_as_stranger(python, CALL, guarded.socket_path, administration) == DENIED


def test_a_user_of_neither_group_can_open_no_socket(guarded: DaemonProcess, python: str) -> None:
    metrics = guarded.socket_path.with_name("metrics.sock")
    for path in (guarded.socket_path, guarded.admin_socket_path, metrics):
        assert run_as_stranger(python, CALL, path) == DENIED


def test_other_users_cannot_open_the_lock_files(
    guarded: DaemonProcess, groups: tuple[int, int], python: str
) -> None:
    for path in (guarded.socket_path, guarded.admin_socket_path):
        assert run_as_stranger(python, OPEN, Path(f"{path}.lock"), *groups) == DENIED


def test_a_mode_for_all_users_admits_all_users(
    database: str, short_directory: Path, python: str
) -> None:
    short_directory.chmod(0o755)
    with DaemonProcess(short_directory, dsn=database, socket_mode="0666") as process:
        assert run_as_stranger(python, CALL, process.socket_path) == "answered"
        assert run_as_stranger(python, CALL, process.admin_socket_path) == DENIED


def test_a_closed_directory_blocks_other_users(
    database: str, short_directory: Path, python: str
) -> None:
    short_directory.chmod(0o700)
    with DaemonProcess(short_directory, dsn=database, socket_mode="0666") as process:
        assert run_as_stranger(python, CALL, process.socket_path) == DENIED


def test_a_directory_that_the_daemon_creates_is_not_writable_by_others(
    database: str, short_directory: Path, python: str
) -> None:
    short_directory.chmod(0o755)
    made = short_directory / "made"
    settings: dict[str, Any] = {"metrics_address": made / "metrics.sock"}
    with DaemonProcess(short_directory, dsn=database, **settings):
        assert made.stat().st_mode & 0o777 == 0o755
        remove = "import os, sys; os.unlink(sys.argv[1]); print('removed')"
        assert run_as_stranger(python, remove, made / "metrics.sock") == DENIED


def test_the_embedded_postgresql_is_closed_to_other_users(
    open_directory: Path, python: str
) -> None:
    with DaemonProcess(open_directory) as process:
        assert process.client.is_serving()
        (server,) = (open_directory / "state").rglob(".s.PGSQL.*[0-9]")
        assert run_as_stranger(python, CALL, server) == DENIED
        listing = "import os, sys; print(os.listdir(sys.argv[1]))"
        assert run_as_stranger(python, listing, open_directory / "state" / "postgres") == DENIED
