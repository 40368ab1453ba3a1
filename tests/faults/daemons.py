"""A daemon that a test can start without waiting, and whose memory it can measure."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.daemon_process import EXIT_TIMEOUT_S, READY_TIMEOUT_S, DaemonProcess


class Daemon(DaemonProcess):
    """`tilecache serve`, with what fault tests need."""

    @property
    def state_directory(self) -> Path:
        """The directory of the embedded PostgreSQL server."""
        return self.socket_path.parent / "state"

    @contextmanager
    def memory_taken(self) -> Iterator[list[int]]:
        """A list that receives, at the end of the block, the bytes by which the daemon's memory
        peaked above its initial size."""
        process = Path("/proc") / str(self.pid)
        (process / "clear_refs").write_text("5")  # proc(5): resets the peak
        before, taken = _peak_bytes(process), list[int]()
        yield taken
        taken.append(_peak_bytes(process) - before)

    @property
    def ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    def __enter__(self) -> "Daemon":
        try:
            self.start()
        except BaseException as error:
            error.args = (*error.args, f"the daemon's log:\n{self.log}")
            self.close()
            raise
        return self

    def launch(self) -> None:
        """Starts the daemon without waiting."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, env=self._environment, stdout=log, stderr=log
            )

    def wait_until_ready(self) -> None:
        self.client.wait_until_ready(READY_TIMEOUT_S)

    def wait_until_ended(self) -> int:
        """Waits for the daemon to end; returns its exit code."""
        assert self._process is not None
        return self._process.wait(EXIT_TIMEOUT_S)


def _peak_bytes(process: Path) -> int:
    (line,) = (
        line for line in (process / "status").read_text().splitlines() if line.startswith("VmHWM:")
    )
    return int(line.split()[1]) * 1024
