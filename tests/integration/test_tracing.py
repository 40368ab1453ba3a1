"""Traces, as a collector receives them."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.daemon_process import DaemonProcess, daemon_environment
from tests.tiles import TIMEOUT_S, Block, by_key, insert, tile
from tests.waiting import eventually
from tilecache.errors import CallError
from tilecache.v1.tile_metadata_store_pb2 import (
    GetServerInfoRequest,
    GetTileRequest,
    QueryTilesRequest,
)

NOWHERE = "http://127.0.0.1:1"
EXIT_USAGE = 2


class Collector(TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[Resource] = []

    def Export(  # noqa: N802
        self, request: ExportTraceServiceRequest, _: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        for received in request.resource_spans:
            self.resources.append(received.resource)
            for scope in received.scope_spans:
                self.spans.extend(scope.spans)
        return ExportTraceServiceResponse()

    def find(self, name: str, trace_id: str) -> Span | None:
        """The span of a call, by its RPC and its trace."""
        for span in self.spans:
            if span.name.endswith(f"/{name}") and span.trace_id.hex() == trace_id:
                return span
        return None


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector and its endpoint."""
    server, kept = grpc.server(ThreadPoolExecutor(2)), Collector()
    add_TraceServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield kept, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


def attributes(holder: Span | Resource) -> dict[str, Any]:
    values = {item.key: item.value for item in holder.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


def traceparent(trace_id: str, parent_id: str = "00f067aa0ba902b7") -> Any:
    return (("traceparent", f"00-{trace_id}-{parent_id}-01"),)


def test_each_call_is_a_span_of_its_callers_trace(
    database: str, short_directory: Path, block: Block, collector: tuple[Collector, str]
) -> None:
    kept, endpoint = collector
    trace_id, parent_id = uuid4().hex, "00f067aa0ba902b7"
    metadata = traceparent(trace_id, parent_id)
    with DaemonProcess(short_directory, dsn=database, otlp_endpoint=endpoint) as daemon:
        store = daemon.client.store
        insert(daemon.client, tile(block.key()))
        store.GetTile(
            GetTileRequest(tile=by_key(block.key())), timeout=TIMEOUT_S, metadata=metadata
        )
        list(
            store.QueryTiles(
                QueryTilesRequest(zoom=block.zoom, region=block.region), metadata=metadata
            )
        )
        read = eventually(lambda: kept.find("GetTile", trace_id))
        queried = eventually(lambda: kept.find("QueryTiles", trace_id))
    assert read.name == "tilecache.v1.TileMetadataStore/GetTile"
    assert read.kind == Span.SPAN_KIND_SERVER
    assert attributes(read) == {
        "rpc.system": "grpc",
        "rpc.service": "tilecache.v1.TileMetadataStore",
        "rpc.method": "GetTile",
        "rpc.grpc.status_code": 0,
    }
    assert read.parent_span_id.hex() == queried.parent_span_id.hex() == parent_id
    assert read.end_time_unix_nano > read.start_time_unix_nano
    about = attributes(kept.resources[0])
    assert about["service.name"] == "tilecache-daemon"
    assert about["service.version"]


def test_a_refused_call_has_its_status_and_is_not_the_daemons_fault(
    database: str, short_directory: Path, block: Block, collector: tuple[Collector, str]
) -> None:
    kept, endpoint = collector
    trace_id = uuid4().hex
    with DaemonProcess(short_directory, dsn=database, otlp_endpoint=endpoint) as daemon:
        with pytest.raises(CallError):
            daemon.client.store.GetTile(
                GetTileRequest(tile=by_key(block.key())), metadata=traceparent(trace_id)
            )
        span = eventually(lambda: kept.find("GetTile", trace_id))
    assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert span.status.code == Status.STATUS_CODE_UNSET


def test_the_standard_environment_is_enough_and_names_the_service(
    database: str,
    short_directory: Path,
    collector: tuple[Collector, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept, endpoint = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "aircraft-7")
    with DaemonProcess(short_directory, dsn=database) as daemon:
        daemon.client.store.GetServerInfo(GetServerInfoRequest(), timeout=TIMEOUT_S)
        eventually(lambda: kept.spans)
    assert attributes(kept.resources[0])["service.name"] == "aircraft-7"


def test_what_is_left_is_sent_when_the_daemon_stops(
    database: str,
    short_directory: Path,
    collector: tuple[Collector, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept, endpoint = collector
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    with DaemonProcess(short_directory, dsn=database, otlp_endpoint=endpoint) as daemon:
        daemon.client.store.GetServerInfo(GetServerInfoRequest(), timeout=TIMEOUT_S)
        assert daemon.stop() == 0
    assert [span.name.rpartition("/")[2] for span in kept.spans] == ["GetServerInfo"]


def test_a_collector_that_is_away_hinders_neither_calls_nor_the_stop(
    database: str, short_directory: Path
) -> None:
    with DaemonProcess(short_directory, dsn=database, otlp_endpoint=NOWHERE) as daemon:
        for _ in range(10):
            daemon.client.store.GetServerInfo(GetServerInfoRequest(), timeout=TIMEOUT_S)
        assert daemon.stop() == 0


def run_python(program: str, **settings: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program],
        env=daemon_environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_opentelemetry_is_not_loaded_unless_it_is_asked_for() -> None:
    program = """
import sys
from tilecache_daemon.clock import Clock
from tilecache_daemon.config import load_config
from tilecache_daemon.observability.observation import Observation
assert len(Observation(load_config(), Clock()).observers) == 1
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    finished = run_python(program)
    assert finished.returncode == 0, finished.stderr


def test_a_missing_extra_is_named(short_directory: Path) -> None:
    program = """
import sys
sys.modules["opentelemetry"] = None
from tilecache_daemon.cli import main
main(["serve"])
"""
    finished = run_python(
        program,
        otlp_endpoint=NOWHERE,
        socket_path=short_directory / "s",
        admin_socket_path=short_directory / "a",
    )
    assert finished.returncode == EXIT_USAGE
    assert "tilecache-daemon[otel]" in finished.stderr
