"""Background tasks, restarted after unexpected errors.

A background task runs until it is cancelled, and handles the errors that it expects, such as
a database that does not answer. Any other error ends it. The supervisor then logs the
traceback and starts the task again, after a delay that doubles with each failure and is
reset once the task has run for a while. How often each task has failed, and whether it is
running, is in the metrics, in `tilecache status` and in the status text for systemd.

What a failed task means for calls is the task's own matter: while the change feed is away,
for example, reads go to PostgreSQL. So a failed task does not make the daemon unready, with
one exception, the database monitor (see `daemon.py`).
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import structlog

from tilecache_daemon import tasks

FIRST_DELAY_S: Final = 0.5
MAX_DELAY_S: Final = 30.0
STABLE_AFTER_S: Final = 60.0
"""A task that has run for so long has recovered: its next failure is delayed as the first."""

Work = Callable[[], Coroutine[Any, Any, None]]

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class SupervisedTask:
    """One background task. Its state may be read from any thread."""

    def __init__(
        self, name: str, work: Work, monotonic: Callable[[], float], notify: Callable[[], None]
    ) -> None:
        """`notify` is called whenever the task ends unexpectedly or starts."""
        self.name = name
        self.failures = 0
        """Since the start of the daemon."""
        self.last_error = ""
        self._work = work
        self._monotonic = monotonic
        self._notify = notify
        self._delay_s = FIRST_DELAY_S
        self._restart: asyncio.TimerHandle | None = None
        self._stopping = False
        self._run()

    @property
    def running(self) -> bool:
        """False while it waits to be restarted, and after `stop`."""
        return not self._task.done()

    @property
    def healthy(self) -> bool:
        """Whether it is running, and has not failed recently."""
        return self.running and (not self.failures or self._is_stable())

    def describe(self) -> str:
        """How the task does, for people."""
        state = "is running again" if self.running else "is not running"
        times = "once" if self.failures == 1 else f"{self.failures} times"
        return f"background task {self.name} {state}, failed {times}: {self.last_error}"

    async def stop(self) -> None:
        """Returns when the task has ended. An error that ends it is only logged."""
        self._stopping = True
        if self._restart:
            self._restart.cancel()
        with contextlib.suppress(Exception):
            await tasks.end(self._task)

    def _run(self) -> None:
        self._started_at = self._monotonic()
        self._task = asyncio.create_task(self._work(), name=self.name)
        self._task.add_done_callback(self._ended)
        self._notify()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if self._stopping and (task.cancelled() or not task.exception()):
            return
        if self._is_stable():
            self._delay_s = FIRST_DELAY_S
        error = _error_of(task)
        self.failures += 1
        self.last_error = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        log.error(
            "background_task_failed",
            task=self.name,
            failures=self.failures,
            restart_in_s=None if self._stopping else self._delay_s,
            exc_info=error,
        )
        if not self._stopping:
            self._restart = asyncio.get_running_loop().call_later(self._delay_s, self._run)
            self._delay_s = min(2 * self._delay_s, MAX_DELAY_S)
        self._notify()

    def _is_stable(self) -> bool:
        return self._monotonic() - self._started_at >= STABLE_AFTER_S


class Supervisor:
    """The owner of all background tasks."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._tasks: list[SupervisedTask] = []
        self._listeners: list[Callable[[], None]] = []

    @property
    def tasks(self) -> Sequence[SupervisedTask]:
        """All that were started, in that order."""
        return self._tasks

    def on_change(self, listener: Callable[[], None]) -> None:
        """`listener` is called whenever a task ends unexpectedly or starts."""
        self._listeners.append(listener)

    def start(self, name: str, work: Work) -> SupervisedTask:
        """Runs `work` until the task's `stop`, again after each failure."""
        task = SupervisedTask(name, work, self._monotonic, self._notify)
        self._tasks.append(task)
        return task

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()


def _error_of(task: "asyncio.Task[None]") -> BaseException:
    if task.cancelled():
        return asyncio.CancelledError("cancelled, but not by its supervisor")
    return task.exception() or RuntimeError("returned, but should run until cancelled")
