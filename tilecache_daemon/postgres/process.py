"""One run of PostgreSQL's server process: start, log, stop."""

import logging
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final

SERVER_ENVIRONMENT: Final = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}
"""The server's whole environment: no PG* variable of the daemon's reaches it."""

LOG_LINE_PREFIX: Final = "%b|"
"""The server's `log_line_prefix`: the type of the backend that logs the line."""

_MAX_LAST_LINES: Final = 20
_JOIN_TIMEOUT_S: Final = 5
_STOP_SIGNALS: Final = (
    (signal.SIGINT, 60),  # fast shutdown: ends sessions, writes a checkpoint
    (signal.SIGQUIT, 10),  # immediate shutdown: the next start recovers
    (signal.SIGKILL, None),
)

_logger = logging.getLogger(__name__)


class ServerProcess:
    """A server process. Its log lines are forwarded to the daemon's log."""

    def __init__(self, command: Sequence[str], inherited_descriptor: int) -> None:
        """Raises OSError if `command` cannot be started."""
        self._last_lines: deque[str] = deque(maxlen=_MAX_LAST_LINES)
        started: Future[subprocess.Popen[str]] = Future()
        # PR_SET_PDEATHSIG fires when the thread that started the process ends, so that
        # thread lives as long as the server.
        self._thread = threading.Thread(
            target=self._run,
            args=(command, inherited_descriptor, started),
            name="postgres",
            daemon=True,
        )
        self._thread.start()
        self._process = started.result()
        self.pid = self._process.pid

    def is_running(self) -> bool:
        """Whether the process runs; reaps it if it has ended."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Stops the process, by force if it takes too long. Idempotent."""
        for signal_number, timeout_s in _STOP_SIGNALS:
            self._process.send_signal(signal_number)
            try:
                self._process.wait(timeout_s)
                break
            except subprocess.TimeoutExpired:
                _logger.warning(
                    "PostgreSQL is still running %s s after %s", timeout_s, signal_number
                )
        self._thread.join(_JOIN_TIMEOUT_S)

    def kill(self) -> None:
        """Ends the process at once; the next start recovers what was committed. Idempotent."""
        self._process.kill()
        self._process.wait()

    def read_last_lines(self) -> str:
        """The last log lines of a server that has ended."""
        self._thread.join(_JOIN_TIMEOUT_S)
        return "\n".join(self._last_lines)

    def _run(
        self,
        command: Sequence[str],
        inherited_descriptor: int,
        started: "Future[subprocess.Popen[str]]",
    ) -> None:
        try:
            process = subprocess.Popen(  # noqa: S603
                command,
                cwd="/",
                env=SERVER_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                pass_fds=[inherited_descriptor],
                # Ctrl-C must reach the daemon alone: it drains, then stops the server.
                start_new_session=True,
            )
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(process)
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self._forward(line.rstrip())
        process.wait()

    def _forward(self, line: str) -> None:
        backend_type, _, text = line.rpartition("|") if line.count("|") == 1 else ("", "", line)
        self._last_lines.append(text)
        _logger.log(_level(backend_type, text), "PostgreSQL: %s", text)


def read_ready_pid(data: Path) -> int | None:
    """The process id of a server on `data` whose pid file says that it is ready, if any."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    # The file's format: PostgreSQL's src/include/utils/pidfile.h.
    return int(lines[0]) if len(lines) >= 8 and lines[7].strip() == "ready" else None


def remove_stale_pid_file(pid_file: Path) -> None:
    """Removes a pid file whose process is not a PostgreSQL server.

    The process id may belong to another program, as after a power failure, or to a
    zombie, as in some containers. PostgreSQL takes either for a running server and
    does not start. The caller must hold the lock that all servers on the same data
    inherit.
    """
    try:
        pid = int(pid_file.read_text().split()[0])
        program = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
    except (FileNotFoundError, ProcessLookupError, IndexError, ValueError):
        return  # PostgreSQL handles these itself.
    # An administrator may have started a server manually. A zombie has no command line.
    if Path(os.fsdecode(program)).name != "postgres":
        pid_file.unlink()


def _level(backend_type: str, text: str) -> int:
    severity = text.partition(":")[0]
    if severity == "PANIC":
        return logging.ERROR
    # The client of a session gets its errors.
    if backend_type == "client backend":
        return logging.DEBUG
    levels = {"WARNING": logging.WARNING, "ERROR": logging.ERROR, "FATAL": logging.ERROR}
    return levels.get(severity, logging.DEBUG)
