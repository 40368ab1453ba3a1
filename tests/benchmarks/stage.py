"""The stage of the benchmark: a durable PostgreSQL, daemons and peers on it."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from uuid import uuid4

import grpc
import psycopg
from psycopg.conninfo import make_conninfo

from tests.benchmarks.peers import PsycopgPeer
from tests.benchmarks.tiles import make_records
from tests.daemon_process import DaemonProcess
from tilecache.client import TileCacheClient
from tilecache_daemon.config import Config
from tilecache_daemon.postgres.embedded import EmbeddedPostgres
from tilecache_daemon.postgres.memory import available_memory_bytes, memory_settings
from tilecache_daemon.schema.migrator import apply_migrations

CACHE_BYTES = 1024**3
START_TIMEOUT_S = 150.0


class Stage:
    """Everything that a figure needs, closed when the benchmark ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._closing = ExitStack()
        settings = memory_settings(available_memory_bytes())
        self.server = EmbeddedPostgres(directory / "state", settings=settings)
        self._closing.callback(self.server.stop)
        self.dsn = self.server.start()

    def close(self) -> None:
        self._closing.close()

    def empty_database(self) -> str:
        """The address of a new database without a schema."""
        name = f"bench_{uuid4().hex}"
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        return make_conninfo(self.dsn, dbname=name)

    def database(self, edge: int = 0, count: int | None = None) -> str:
        """One at the newest schema, with a square of tiles, analysed and at rest."""
        dsn = self.empty_database()
        apply_migrations(Config(dsn=dsn))
        if edge:
            peer = PsycopgPeer(dsn)
            peer.copy(make_records(edge, count), datetime.now(timezone.utc))
            peer.connection.execute("VACUUM ANALYZE tiles")
            peer.connection.execute("CHECKPOINT")
            peer.connection.close()
        return dsn

    @contextmanager
    def daemon(self, dsn: str, **settings: object) -> Iterator[DaemonProcess]:
        """A daemon on a database."""
        directory = self._directory / uuid4().hex[:8]
        directory.mkdir()
        settings = {"cache_max_bytes": CACHE_BYTES} | settings
        with DaemonProcess(directory, dsn=dsn, **settings) as process:
            yield process
            process.stop()

    def time_start(self, dsn: str | None) -> float:
        """Seconds from the start of a daemon's process until it is ready. Without an address, it
        starts the stage's server, which must not run, as its own."""
        directory = self._directory / uuid4().hex[:8] if dsn else self._directory
        directory.mkdir(exist_ok=True)
        daemon = DaemonProcess(directory, dsn=dsn)
        start = time.perf_counter()
        daemon.launch()
        while not daemon.socket_path.exists():
            assert time.perf_counter() - start < START_TIMEOUT_S, daemon.log
            time.sleep(0.001)
        # A client that had tried before would wait for its next try.
        with TileCacheClient(daemon.socket_path) as client:
            client.wait_until_ready(timeout_s=START_TIMEOUT_S)
            taken = time.perf_counter() - start
        daemon.stop()
        daemon.close()
        return taken

    @contextmanager
    def echo(self, answer_bytes: int) -> Iterator[Callable[..., bytes]]:
        """An empty call on the same kind of server."""
        path = self._directory / f"{uuid4().hex[:8]}.sock"
        command = [sys.executable, "-m", "tests.benchmarks.peers", str(path), str(answer_bytes)]
        process = subprocess.Popen(command)
        try:
            with grpc.insecure_channel(f"unix:{path}") as channel:
                grpc.channel_ready_future(channel).result(timeout=30)
                yield channel.unary_unary("/echo.Echo/Call")
        finally:
            process.terminate()
            process.wait()


def resident_bytes(pid: int) -> int:
    """What a process holds in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def settle(pid: int, patience_s: float = 10.0) -> int:
    """The resident memory of a process once it has come to rest."""
    before, until = resident_bytes(pid), time.monotonic() + patience_s
    while time.monotonic() < until:
        time.sleep(0.5)
        now = resident_bytes(pid)
        if abs(now - before) < 64 * 1024:
            return now
        before = now
    return before
