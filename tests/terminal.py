"""Running a command on a terminal."""

import os
import pty
import subprocess

from tests.daemon_process import TILECACHE, daemon_environment


def answer_tilecache(
    answer: str, *arguments: object, **settings: object
) -> "subprocess.CompletedProcess[str]":
    """Runs a `tilecache` command to its end, with an answer that is typed before."""
    terminal, stdin = pty.openpty()
    try:
        os.write(terminal, f"{answer}\n".encode())
        return subprocess.run(
            [TILECACHE, *map(str, arguments)],
            env=daemon_environment(**settings),
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(terminal)
        os.close(stdin)
