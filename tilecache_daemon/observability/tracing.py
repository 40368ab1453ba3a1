"""OpenTelemetry traces: one span for each call, a child of the caller's span.

Needs the extra `otel`. OpenTelemetry's environment variables configure the rest,
for example OTEL_TRACES_SAMPLER and OTEL_SERVICE_NAME.
"""

from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.descriptor import MethodDescriptor
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tilecache_daemon import __version__
from tilecache_daemon.rpc.observers import Begin, End

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME: Final = "tilecache-daemon"
EXPORT_TIMEOUT_S: Final = 2.0
"""How long a collector that does not answer may delay the daemon's stop."""

SERVER_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""The codes that make a server's span an error, by OpenTelemetry's conventions for gRPC;
the others are the caller's errors."""


class Tracing:
    """Creates the spans and exports them in batches, from a thread of its own."""

    def __init__(self, processor: SpanProcessor) -> None:
        # The environment overrides the default name of the service.
        name = Resource.create().attributes.get("service.name", "")
        named = not str(name).startswith("unknown_service")
        about = {"service.version": __version__} | ({} if named else {"service.name": SERVICE_NAME})
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(SERVICE_NAME, __version__)
        self._propagator = TraceContextTextMapPropagator()

    def watch(self, method: MethodDescriptor) -> Begin:
        """See `CallObserver`."""
        service = method.containing_service.full_name
        name = f"{service}/{method.name}"
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method.name}

        def begin(context: "Context") -> End:
            carrier = dict(context.invocation_metadata() or ())
            span = self._tracer.start_span(
                name, self._propagator.extract(carrier), SpanKind.SERVER, attributes
            )

            def end(code: grpc.StatusCode) -> None:
                span.set_attribute("rpc.grpc.status_code", code.value[0])
                if code in SERVER_FAULTS:
                    span.set_status(Status(StatusCode.ERROR, code.name))
                span.end()

            return end

        return begin

    def stop(self) -> None:
        """Exports the remaining spans, within the exporter's timeout. Blocks."""
        self._provider.shutdown()


def start_tracing(otlp_endpoint: str | None) -> Tracing:
    """Traces to an OTLP collector over gRPC; without an endpoint, to the environment's."""
    exporter = OTLPSpanExporter(endpoint=otlp_endpoint, timeout=EXPORT_TIMEOUT_S)
    return Tracing(BatchSpanProcessor(exporter))
