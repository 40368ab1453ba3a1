"""A daemon whose clocks change only when the test sets them."""

import asyncio
import json
import signal
import sys
from datetime import datetime, timedelta
from pathlib import Path

from tests.daemon_process import DaemonProcess
from tilecache_daemon.clock import Clock
from tilecache_daemon.config import load_config
from tilecache_daemon.daemon import Daemon


class ClockedDaemon(DaemonProcess):
    """A daemon process that reads its clocks from a file."""

    def __init__(self, directory: Path, now: datetime, **settings: object) -> None:
        super().__init__(directory, **settings)
        self._clock_file = directory / "clock.json"
        self.command = (sys.executable, "-m", "tests.clocked_daemon", self._clock_file)
        self._uptime_s = 100.0
        self.set_clock(now)

    def set_clock(self, now: datetime) -> None:
        """Sets the time of day."""
        self._now = now
        text = json.dumps({"now": now.isoformat(), "uptime_s": self._uptime_s})
        replacement = self._clock_file.with_suffix(".new")
        replacement.write_text(text)
        replacement.replace(self._clock_file)

    def pass_time(self, duration: timedelta) -> None:
        """Advances both clocks."""
        self._uptime_s += duration.total_seconds()
        self.set_clock(self._now + duration)


async def _serve(clock_file: Path) -> None:
    def wall() -> datetime:
        return datetime.fromisoformat(json.loads(clock_file.read_text())["now"])

    def monotonic() -> float:
        return float(json.loads(clock_file.read_text())["uptime_s"])

    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    daemon = Daemon(load_config(), Clock(wall, monotonic))
    await daemon.start()
    await stopped.wait()
    await daemon.stop()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
