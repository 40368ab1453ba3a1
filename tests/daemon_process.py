"""The daemon as a process that listens on Unix sockets."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tilecache.client import TileCacheClient
from tilecache.errors import CallError

TILECACHE = Path(sys.executable).with_name("tilecache")
READY_TIMEOUT_S = 120.0
EXIT_TIMEOUT_S = 60.0


class DaemonProcess:
    """`tilecache serve`, with its settings in the environment."""

    command: Sequence[str | Path] = (TILECACHE, "serve")

    def __init__(self, directory: Path, **settings: object) -> None:
        """`directory` holds the sockets and the log, and must have a short path."""
        self.socket_path = directory / "tilecache.sock"
        self.admin_socket_path = directory / "admin.sock"
        self.log_path = directory / "daemon.log"
        self._environment = daemon_environment(
            socket_path=self.socket_path,
            admin_socket_path=self.admin_socket_path,
            state_directory=directory / "state",
            **settings,
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.client = TileCacheClient(self.socket_path)
        self.admin_client = TileCacheClient(self.admin_socket_path)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def start(self) -> "DaemonProcess":
        """Starts the daemon and waits until it is ready."""
        self.launch()
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                self.client.wait_until_ready(timeout_s=2.0)
            except CallError:
                exit_code = self._process and self._process.poll()
                assert exit_code is None, f"the daemon ended with {exit_code}:\n{self.log}"
                assert time.monotonic() < deadline, f"the daemon is not ready:\n{self.log}"
            else:
                return self

    def launch(self) -> None:
        """Starts the daemon without waiting."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, env=self._environment, stdout=log, stderr=log
            )

    def signal(self, number: signal.Signals) -> int:
        """Sends a signal; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(EXIT_TIMEOUT_S)

    def stop(self) -> int:
        """Stops the daemon gracefully; returns the exit code."""
        return self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the daemon."""
        self.signal(signal.SIGKILL)

    def close(self) -> None:
        """Closes the clients and kills the daemon if it runs."""
        self.client.close()
        self.admin_client.close()
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def __enter__(self) -> "DaemonProcess":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self.log_path.exists():
            error.args = (*error.args, f"the daemon's log:\n{self.log}")
        self.close()


def daemon_environment(**settings: object) -> dict[str, str]:
    """An environment with only these settings; those that are None are left out."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TILECACHE_") and name != "DB_URL"
    }
    given = {
        f"TILECACHE_{name.upper()}": str(value)
        for name, value in settings.items()
        if value is not None
    }
    return inherited | given


def run_tilecache(
    *arguments: object, prefix: Sequence[str] = (), **settings: object
) -> "subprocess.CompletedProcess[str]":
    """Runs a `tilecache` command to its end, by the command `prefix` if there is one."""
    return subprocess.run(
        [*prefix, TILECACHE, *map(str, arguments)],
        env=daemon_environment(**settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
