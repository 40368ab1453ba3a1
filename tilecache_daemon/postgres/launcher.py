"""Starts one of PostgreSQL's programs as another user, and stops it when the daemon ends.

Run as a script, in a process of its own. It changes the user, then asks the kernel
for a signal at the parent's death. Neither is safe between fork and exec in a process
with several threads. It needs only the standard library.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

_PR_SET_PDEATHSIG: Final = 1
_EXIT_NOT_STARTED: Final = 127


class ServerUser(NamedTuple):
    """The system user that PostgreSQL runs as."""

    uid: int
    gid: int


def wrap_command(command: Sequence[str], user: ServerUser) -> list[str]:
    """The command line that runs `command` as `user`.

    When the thread that starts it ends, the command gets SIGINT, on which PostgreSQL
    shuts down cleanly.
    """
    identity = (os.getpid(), user.uid, user.gid)
    return [sys.executable, "-I", "-S", __file__, *map(str, identity), *command]


def main(parent: str, uid: str, gid: str, *command: str) -> None:
    """Replaces this process with `command`; never returns."""
    _change_user(ServerUser(int(uid), int(gid)))
    _die_with_parent(int(parent))
    os.execv(command[0], command)  # noqa: S606


def _change_user(user: ServerUser) -> None:
    if os.geteuid() == user.uid:
        return
    os.setgroups([])
    os.setgid(user.gid)
    os.setuid(user.uid)


def _die_with_parent(parent: int) -> None:
    # A change of user clears this setting (prctl(2)), so it is set afterwards.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the daemon ended before its PostgreSQL could start")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        print(f"{' '.join(sys.argv[4:5])}: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(_EXIT_NOT_STARTED)
