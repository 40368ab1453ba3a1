"""Background tasks are restarted after unexpected errors, and their failures are counted."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from tilecache_daemon import supervisor as module
from tilecache_daemon.supervisor import STABLE_AFTER_S, Supervisor

PATIENCE_S = 60
DELAY_S = 0.001


class Time:
    """A monotonic clock that only the test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Runs:
    """A background task that does something else in each run, and runs on after the last."""

    def __init__(self, *steps: Callable[[], Awaitable[None]]) -> None:
        self._steps = list(steps)
        self.count = 0

    async def __call__(self) -> None:
        self.count += 1
        if self._steps:
            await self._steps.pop(0)()
        else:
            await run_on()


async def run_on() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise LookupError("as the test wants it")


async def return_early() -> None:
    pass


async def be_cancelled() -> None:
    raise asyncio.CancelledError


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY_S", DELAY_S)
    monkeypatch.setattr(module, "MAX_DELAY_S", 4 * DELAY_S)


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def supervisor(time: Time) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(time)
    yield supervisor
    for task in supervisor.tasks:
        await task.stop()


async def changed_until(supervisor: Supervisor, condition: Callable[[], bool]) -> None:
    """Returns when a condition holds, which is checked when the supervisor reports a change."""
    changed = asyncio.Event()
    supervisor.on_change(changed.set)

    async def wait() -> None:
        while not condition():
            await changed.wait()
            changed.clear()

    await asyncio.wait_for(wait(), PATIENCE_S)


@pytest.mark.parametrize(
    ("ending", "error"),
    [
        (fail, "LookupError: as the test wants it"),
        (return_early, "RuntimeError: returned"),
        (be_cancelled, "CancelledError: cancelled"),
    ],
)
async def test_a_task_that_ends_is_logged_counted_and_restarted(
    supervisor: Supervisor, log: list[Any], ending: Callable[[], Awaitable[None]], error: str
) -> None:
    runs = Runs(ending)
    task = supervisor.start("flush", runs)
    assert task.healthy
    await changed_until(supervisor, lambda: task.failures == 1)
    assert not task.running
    assert f"flush is not running, failed once: {error}" in task.describe()
    (line,) = log
    assert (line["event"], line["log_level"]) == ("background_task_failed", "error")
    assert (line["task"], line["failures"]) == ("flush", 1)
    assert isinstance(line["exc_info"], BaseException)
    await changed_until(supervisor, lambda: task.running)
    assert runs.count == 2
    assert "flush is running again, failed once" in task.describe()


async def test_the_delay_doubles_up_to_a_bound(supervisor: Supervisor, log: list[Any]) -> None:
    task = supervisor.start("flush", Runs(*[fail] * 5))
    await changed_until(supervisor, lambda: task.failures == 5 and task.running)
    delays = [line["restart_in_s"] / DELAY_S for line in log]
    assert delays == [1, 2, 4, 4, 4]
    assert "failed 5 times" in task.describe()


async def test_a_task_that_has_run_for_a_while_has_recovered(
    supervisor: Supervisor, time: Time, log: list[Any]
) -> None:
    fail_now = asyncio.Event()

    async def fail_later() -> None:
        await fail_now.wait()
        raise LookupError

    task = supervisor.start("flush", Runs(fail, fail, fail_later))
    await changed_until(supervisor, lambda: task.failures == 2 and task.running)
    assert not task.healthy
    time.now_s += STABLE_AFTER_S
    assert task.healthy
    fail_now.set()
    await changed_until(supervisor, lambda: task.failures == 3)
    delays = [line["restart_in_s"] / DELAY_S for line in log]
    assert delays == [1, 2, 1]


async def test_other_tasks_run_on_when_one_fails(supervisor: Supervisor) -> None:
    steady, failing = Runs(), Runs(fail, fail)
    tasks = [supervisor.start("steady", steady), supervisor.start("failing", failing)]
    await changed_until(supervisor, lambda: tasks[1].failures == 2 and tasks[1].running)
    assert (steady.count, tasks[0].failures) == (1, 0)
    assert [task.name for task in supervisor.tasks] == ["steady", "failing"]


async def test_a_stopped_task_is_not_restarted(supervisor: Supervisor, log: list[Any]) -> None:
    runs = Runs()
    task = supervisor.start("flush", runs)
    await asyncio.sleep(0)
    await task.stop()
    assert not task.running
    assert (runs.count, task.failures, log) == (1, 0, [])


async def test_a_task_that_waits_for_its_restart_can_be_stopped(supervisor: Supervisor) -> None:
    runs = Runs(fail)
    task = supervisor.start("flush", runs)
    await changed_until(supervisor, lambda: task.failures == 1)
    await task.stop()
    # A timer that was set for the restart would fire before this one.
    await asyncio.sleep(2 * DELAY_S)
    assert runs.count == 1


async def test_an_error_at_the_stop_is_logged_and_not_raised(
    supervisor: Supervisor, log: list[Any]
) -> None:
    async def fail_when_cancelled() -> None:
        try:
            await run_on()
        finally:
            raise LookupError

    runs = Runs(fail_when_cancelled)
    task = supervisor.start("flush", runs)
    await asyncio.sleep(0)
    await task.stop()
    assert runs.count == 1
    assert [line["event"] for line in log] == ["background_task_failed"]
    assert log[0]["restart_in_s"] is None
