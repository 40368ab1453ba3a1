"""One run of PostgreSQL's server process: started, heard, ended, reaped."""

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
"""All that PostgreSQL gets of the environment: nobody's PG variables lead it astray."""

LOG_LINE_PREFIX: Final = "%b|"
"""What the server must put before each line: the kind of process that speaks."""

_KEPT_LINES: Final = 20
_JOIN_TIMEOUT_S: Final = 5
_STOPS: Final = (
    (signal.SIGINT, 60),  # Ends sessions, writes a checkpoint.
    (signal.SIGQUIT, 10),  # Ends at once; the next start recovers.
    (signal.SIGKILL, None),
)

_logger = logging.getLogger(__name__)


class ServerProcess:
    """A server, from its start on. Its log goes to the daemon's."""

    def __init__(self, command: Sequence[str], inherited_descriptor: int) -> None:
        """Raises OSError if `command` cannot be started."""
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        started: Future[subprocess.Popen[str]] = Future()
        # The kernel takes the end of the thread that starts a process for its
        # parent's death, so that thread stays for as long as the server does.
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
        """Whether the process lives; reaps it if not."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ends the process, by force if it does not in time. Idempotent."""
        for signal_number, timeout_s in _STOPS:
            self._process.send_signal(signal_number)
            try:
                self._process.wait(timeout_s)
                break
            except subprocess.TimeoutExpired:
                _logger.warning("PostgreSQL still runs %s s after %s", timeout_s, signal_number)
        self._thread.join(_JOIN_TIMEOUT_S)

    def last_words(self) -> str:
        """The last lines of the log of a server that has ended."""
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
                # A Ctrl-C is the daemon's, which stops the server when it has drained.
                start_new_session=True,
            )
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(process)
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self._hear(line.rstrip())
        process.wait()

    def _hear(self, line: str) -> None:
        speaker, _, text = line.rpartition("|") if line.count("|") == 1 else ("", "", line)
        self._last_lines.append(text)
        _logger.log(_level(speaker, text), "PostgreSQL: %s", text)


def ready_pid(data: Path) -> int | None:
    """The process id of the server that says in `data` that it is ready, if one does."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    # The file's form: PostgreSQL's src/include/utils/pidfile.h.
    return int(lines[0]) if len(lines) >= 8 and lines[7].strip() == "ready" else None


def remove_stale_pid_file(pid_file: Path) -> None:
    """Removes a server's pid file whose number is another program's, as it may be after
    a power cut, or that of a dead process that nobody has reaped, as in some containers.

    PostgreSQL takes either for a living server and does not start. To be called by
    one who holds the lock that all servers on the same data inherit.
    """
    try:
        pid = int(pid_file.read_text().split()[0])
        program = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
    except (FileNotFoundError, ProcessLookupError, IndexError, ValueError):
        return  # PostgreSQL itself sees to these.
    # An administrator may have started a server by hand; a dead process has no command line.
    if Path(os.fsdecode(program)).name != "postgres":
        pid_file.unlink()


def _level(speaker: str, text: str) -> int:
    severity = text.partition(":")[0]
    if severity == "PANIC":
        return logging.ERROR
    # What goes wrong in a session is told to its client.
    if speaker == "client backend":
        return logging.DEBUG
    levels = {"WARNING": logging.WARNING, "ERROR": logging.ERROR, "FATAL": logging.ERROR}
    return levels.get(severity, logging.DEBUG)
