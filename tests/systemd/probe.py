"""Tries what the daemon's sandbox forbids, and prints the results. Run inside the sandbox."""

import ctypes
import json
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path

CLONE_NEWUSER = 0x10000000


def outcome(attempt: Callable[[], object]) -> str:
    """ "done", or the error."""
    try:
        attempt()
    except OSError as error:
        return type(error).__name__ if type(error) is not OSError else os.strerror(error.errno or 0)
    return "done"


def names(directory: str) -> list[str]:
    """The names in a directory."""
    return [path.name for path in Path(directory).iterdir()]


def leave_user_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")


def map_writable_code() -> None:
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    mmap.mmap(-1, mmap.PAGESIZE, prot=protection).close()


def make_setuid_program() -> None:
    program = Path(os.environ["STATE_DIRECTORY"], "setuid-program")
    try:
        program.touch()
        program.chmod(0o4755)
    finally:
        program.unlink()


def write(directory: str) -> str:
    """The outcome of creating a file in a directory."""
    file = Path(directory, "probe")
    result = outcome(file.touch)
    if result == "done":
        file.unlink()
    return result


OUTSIDE = ("/", "/etc", "/etc/tilecache", "/opt/tilecache", "/var/lib", "/run", "/srv/open")
OWN = (os.environ["STATE_DIRECTORY"], os.environ["RUNTIME_DIRECTORY"])

print(
    json.dumps(
        {
            "written outside": {directory: write(directory) for directory in OUTSIDE},
            "written to its own": {directory: write(directory) for directory in OWN},
            "internet socket": outcome(lambda: socket.socket(socket.AF_INET).close()),
            "network interfaces": names("/sys/class/net"),
            "home of root": outcome(lambda: names("/root")),
            "shared /tmp": names("/tmp"),
            "processes of others": [
                entry
                for entry in filter(str.isdecimal, names("/proc"))
                if Path("/proc", entry).stat().st_uid != os.getuid()
            ],
            "kernel settings": Path("/proc/sys").exists(),
            "become root": outcome(lambda: os.setuid(0)),
            "make a setuid program": outcome(make_setuid_program),
            "new user namespace": outcome(leave_user_namespace),
            "writable code": outcome(map_writable_code),
        }
    )
)
