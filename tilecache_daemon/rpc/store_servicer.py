"""TileMetadataStore: each method unpacks, calls a service and packs."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from itertools import accumulate, chain, islice, zip_longest
from typing import Final

from google.protobuf.duration_pb2 import Duration

from tilecache.errors import FieldViolation
from tilecache.identity import MAX_ZOOM, tile_ids_text
from tilecache.v1 import tile_identity_pb2
from tilecache.v1 import tile_metadata_store_pb2 as pb
from tilecache_daemon.errors import InvalidRequestError, LimitExceededError
from tilecache_daemon.geometry.masks import CellMasks
from tilecache_daemon.models import FreshnessLabel, InsertOutcome, Limits, moment_of
from tilecache_daemon.read_priority import ReadPriority
from tilecache_daemon.rpc import packing, regions, requests, wire
from tilecache_daemon.rpc.bulk_insert import BulkInsert
from tilecache_daemon.rpc.calls import MAX_ANSWER_BYTES, Degraded
from tilecache_daemon.rpc.new_tile import new_tile
from tilecache_daemon.rpc.watch_tiles import WatchTiles
from tilecache_daemon.service.block_digests import BlockDigestService
from tilecache_daemon.service.coverage import Coverage, CoverageService
from tilecache_daemon.service.expiry import ExpiryService, ExpirySummary
from tilecache_daemon.service.flights import FlightService
from tilecache_daemon.service.information import InformationService
from tilecache_daemon.service.insertion import InsertionService
from tilecache_daemon.service.reading import ReadingService
from tilecache_daemon.service.uploads import UploadService
from tilecache_daemon.service.watching import WatchService
from tilecache_daemon.store.freshness import ExpiringTile

_EVERYWHERE: Final = pb.Region(
    bounding_box=pb.BoundingBox(south=-90, west=-180, north=90, east=180)
)
MAX_WITHIN: Final = timedelta(days=36_500)
CHUNK_RECTANGLES: Final = 10_000
PIECE_BYTES: Final = 1024 * 1024
CHUNK_BYTES: Final = 512 * 1024
"""So small that a client reads one message while the next is sent."""

_OUTCOMES: Final = {
    outcome: pb.InsertOutcome.Value(f"INSERT_OUTCOME_{outcome.name}") for outcome in InsertOutcome
}


class StoreServicer:
    """The store on the wire."""

    def __init__(
        self,
        information: InformationService,
        insertion: InsertionService,
        reading: ReadingService,
        coverage: CoverageService,
        digests: BlockDigestService,
        expiry: ExpiryService,
        uploads: UploadService,
        flights: FlightService,
        watching: WatchService,
        limits: Limits,
        read_priority: ReadPriority,
    ) -> None:
        self._information = information
        self._insertion = insertion
        self._reading = reading
        self._coverage = coverage
        self._digests = digests
        self._expiry = expiry
        self._uploads = uploads
        self._flights = flights
        self._watching = watching
        self._limits = limits
        self._read_priority = read_priority

    async def get_server_info(self, _: pb.GetServerInfoRequest) -> pb.GetServerInfoResponse:
        info = self._information.describe()
        loss_bound = Duration()
        loss_bound.FromMilliseconds(round(info.access_loss_bound_s * 1000))
        return pb.GetServerInfoResponse(
            contract_version=info.contract_version,
            daemon_version=info.daemon_version,
            schema_revision=info.schema_revision,
            namespace_uuid=info.namespace_uuid,
            limits=pb.Limits(**asdict(info.limits)),
            clock=pb.ClockStatus(
                trusted=info.clock_trusted,
                time=wire.timestamp(info.clock_time),
                reason=info.clock_reason,
            ),
            cache=pb.CacheStatus(**info.cache._asdict()),
            access_loss_bound=loss_bound,
            database_available=info.database_available,
            tiles_directory=info.tiles_directory,
        )

    async def derive_tile_identity(
        self, request: pb.DeriveTileIdentityRequest
    ) -> pb.DeriveTileIdentityResponse:
        requests.check_count("keys", len(request.keys), self._limits.max_request_items)
        identities = []
        for index, message in enumerate(request.keys):
            try:
                key = requests.tile_key(message)
            except InvalidRequestError as error:
                raise error.within(f"keys[{index}]") from None
            tile_uuid, location_hash = tile_ids_text(*key)
            identities.append(
                tile_identity_pb2.TileIdentity(tile_uuid=tile_uuid, location_hash=location_hash)
            )
        return pb.DeriveTileIdentityResponse(identities=identities)

    async def insert_tile(self, request: pb.InsertTileRequest) -> pb.InsertTileResponse:
        on_conflict = requests.on_conflict(request.on_conflict)
        try:
            tile, outcome = await self._insertion.insert(new_tile(request.tile), on_conflict)
        except InvalidRequestError as error:
            raise error.within("tile") from error
        (message,) = wire.tile_messages([tile])
        return pb.InsertTileResponse(tile=message, outcome=_OUTCOMES[outcome])

    def bulk_insert_tiles(
        self, batches: AsyncIterator[pb.BulkInsertTilesRequest]
    ) -> AsyncIterator[pb.BulkInsertTilesResponse]:
        return BulkInsert(self._insertion, self._read_priority, self._limits).run(batches)

    async def get_tile(self, request: pb.GetTileRequest) -> bytes:
        tile_uuid = requests.tile_ref("tile", request.tile)
        element, degraded = await self._reading.get(tile_uuid, record_access=request.record_access)
        return Degraded(element) if degraded else element

    async def lookup_tiles(self, request: pb.LookupTilesRequest) -> bytes:
        tile_uuids = requests.tile_refs(request.tiles, self._limits.max_request_items)
        found = await self._reading.lookup(tile_uuids, record_access=request.record_access)
        answer = packing.pack_results(found.elements)
        if len(answer) > MAX_ANSWER_BYTES:
            raise LimitExceededError(
                FieldViolation("tiles", "name tiles whose answer is too large: ask for fewer")
            )
        return Degraded(answer) if found.degraded else answer

    async def query_tiles(self, request: pb.QueryTilesRequest) -> AsyncIterator[bytes]:
        zoom = requests.zoom(request.zoom)
        cells = regions.region_cells(zoom, request.region)
        wanted = requests.tile_filter(request)
        chunk: list[bytes] = []
        byte_count, degraded = 0, False
        async for part in self._reading.query(zoom, cells, wanted):
            degraded = degraded or part.degraded
            for elements in _pieces(part.elements):
                chunk += elements
                byte_count += sum(map(len, elements))
                if byte_count >= CHUNK_BYTES:
                    yield _join(chunk, degraded)
                    chunk, byte_count = [], 0
        # An empty answer may be out of date, too.
        if chunk or degraded:
            yield _join(chunk, degraded)

    async def describe_coverage(
        self, request: pb.DescribeCoverageRequest
    ) -> AsyncIterator[pb.DescribeCoverageResponse]:
        zooms = requests.zooms(request)
        at = requests.moment("at", request.at) if request.HasField("at") else None
        total = Coverage(None)
        async for coverage in self._coverage.describe(
            regions.region_cells_at(zooms, request.region), at
        ):
            total.add(coverage)
            parts = zip_longest(
                _cell_ranges(coverage.missing), _cell_ranges(coverage.stale), fillvalue=()
            )
            missing, stale = next(parts, ((), ()))
            yield pb.DescribeCoverageResponse(
                summary=_summary(coverage), missing=missing, stale=stale
            )
            for missing, stale in parts:
                yield pb.DescribeCoverageResponse(missing=missing, stale=stale)
        if request.zooms:
            yield pb.DescribeCoverageResponse(total=_summary(total))

    async def describe_blocks(
        self, request: pb.DescribeBlocksRequest
    ) -> AsyncIterator[pb.DescribeBlocksResponse]:
        zoom = requests.zoom(request.zoom)
        if request.blocks:
            parts = self._digests.describe_blocks(
                zoom,
                requests.block_positions(zoom, request, self._limits.max_request_items),
                detail=request.detail,
            )
        elif request.detail:
            raise requests.invalid("blocks", "is required with detail")
        else:
            region = request.region if request.HasField("region") else _EVERYWHERE
            parts = self._digests.describe(zoom, regions.block_filter(zoom, region))
        async for digests in parts:
            messages = chain.from_iterable(map(wire.block_digests, digests))
            for blocks in wire.in_parts(messages, len(digests)):
                yield pb.DescribeBlocksResponse(blocks=blocks)

    async def list_expiring(
        self, request: pb.ListExpiringRequest
    ) -> AsyncIterator[pb.ListExpiringResponse]:
        within = requests.positive_duration("within", request.within, MAX_WITHIN)
        zooms = requests.each_zoom(request.zooms) or list(range(MAX_ZOOM + 1))
        region = request.region if request.HasField("region") else _EVERYWHERE
        contains = regions.cell_filter(zooms, region)
        summary = self._expiry.start()
        async for tiles in self._expiry.list(summary, within, contains):
            if tiles and not request.omit_tiles:
                yield pb.ListExpiringResponse(tiles=map(_expiring_tile, tiles))
        yield pb.ListExpiringResponse(summary=_expiry_summary(summary))

    async def touch_tiles(self, request: pb.TouchTilesRequest) -> pb.TouchTilesResponse:
        tile_uuids = requests.tile_refs(request.tiles, self._limits.max_request_items)
        return pb.TouchTilesResponse(recorded=await self._reading.touch(tile_uuids))

    async def list_pending_uploads(
        self, request: pb.ListPendingUploadsRequest
    ) -> pb.ListPendingUploadsResponse:
        tiles, next_page_token = await self._uploads.list_pending(
            requests.page_size(request.page_size),
            request.page_token,
            requests.optional_flight(request),
        )
        return pb.ListPendingUploadsResponse(
            tiles=wire.tile_messages(tiles), next_page_token=next_page_token
        )

    async def mark_uploaded(self, request: pb.MarkUploadedRequest) -> pb.MarkUploadedResponse:
        requests.check_count("tiles", len(request.tiles), self._limits.max_request_items)
        outcomes = await self._uploads.mark(
            [
                (
                    requests.uuid_text(f"tiles[{index}].tile_uuid", tile.tile_uuid),
                    requests.sha256_text(f"tiles[{index}].content_sha256", tile.content_sha256),
                )
                for index, tile in enumerate(request.tiles)
            ]
        )
        return pb.MarkUploadedResponse(
            outcomes=[pb.MarkOutcome.Value(f"MARK_OUTCOME_{outcome.name}") for outcome in outcomes]
        )

    async def list_tiles(self, request: pb.ListTilesRequest) -> bytes:
        after, size = requests.after_row(request.page_token), requests.page_size(request.page_size)
        if request.file_paths:
            file_paths = requests.listed_files(request, self._limits.max_request_items)
            page = await self._reading.list_of_files(file_paths, after, size)
        else:
            page = await self._reading.list(requests.list_filter(request), after, size)
        elements = packing.pack_tiles(page.tiles)
        sizes = accumulate(map(len, elements))
        fitting = max(sum(size <= wire.PAGE_BYTES for size in sizes), 1)
        last_id, is_last = page.last_id, page.is_last
        if fitting < len(elements):
            last_id, is_last = page.ids[fitting - 1], False
        end = pb.ListTilesResponse(next_page_token="" if is_last else str(last_id))
        return b"".join((*elements[:fitting], end.SerializeToString()))

    async def list_flights(self, request: pb.ListFlightsRequest) -> pb.ListFlightsResponse:
        size = requests.page_size(request.page_size)
        page = await self._flights.list(requests.after_flight(request.page_token), size + 1)
        flights = next(wire.in_parts(map(wire.flight_message, page), size), [])
        more = len(page) > len(flights)
        return pb.ListFlightsResponse(
            flights=flights, next_page_token=flights[-1].flight_id if more else ""
        )

    def watch_tiles(self, messages: AsyncIterator[pb.WatchTilesRequest]) -> AsyncIterator[bytes]:
        return WatchTiles(self._watching, self._limits).run(messages)


def _pieces(elements: list[bytes]) -> Iterator[list[bytes]]:
    """Pieces of some elements of which one more does not burst a message."""
    size = max(PIECE_BYTES // max(map(len, elements), default=1), 1)
    for start in range(0, len(elements), size):
        yield elements[start : start + size]


def _join(elements: Sequence[bytes], degraded: bool) -> bytes:
    answer = b"".join(elements)
    return Degraded(answer) if degraded else answer


def _summary(coverage: Coverage) -> pb.CoverageSummary:
    summary = pb.CoverageSummary(
        zoom=coverage.zoom,
        cell_count=coverage.cell_count,
        covered_count=coverage.covered_count,
        missing_count=coverage.cell_count - coverage.covered_count,
        usable_count=coverage.usable_count,
        stale_count=coverage.covered_count - coverage.usable_count,
        labels=[
            pb.LabelCount(label=wire.LABEL_NUMBERS[label.value], count=coverage.labels[label.value])
            for label in FreshnessLabel
            if coverage.labels[label.value]
        ],
        usable_bytes=wire.int64(coverage.usable_bytes),
    )
    if coverage.estimated_fetch_bytes is not None:
        summary.estimated_fetch_bytes = wire.int64(coverage.estimated_fetch_bytes)
    if captures := coverage.captures:
        summary.oldest_captured_at.CopyFrom(wire.timestamp(captures.oldest))
        summary.median_captured_at.CopyFrom(wire.timestamp(captures.median))
        summary.newest_captured_at.CopyFrom(wire.timestamp(captures.newest))
    return summary


def _expiring_tile(tile: ExpiringTile) -> pb.ExpiringTile:
    return pb.ExpiringTile(
        tile_uuid=tile.tile_uuid,
        key=wire.tile_key(tile),
        captured_at=wire.timestamp(moment_of(tile.captured_us)),
        disk_bytes=tile.disk_bytes,
        freshness_label=wire.LABEL_NUMBERS[tile.label],
        expires_at=wire.timestamp(moment_of(tile.expires_us)),
        next_label=wire.LABEL_NUMBERS[tile.next_label],
        sector=tile.sector,
    )


def _expiry_summary(summary: ExpirySummary) -> pb.ExpirySummary:
    return pb.ExpirySummary(
        counts=[
            pb.ExpiryCount(
                day=wire.timestamp(day),
                sector=sector,
                next_label=wire.LABEL_NUMBERS[label],
                tile_count=count,
                used_bytes=wire.int64(size),
            )
            for (day, sector, label), (count, size) in sorted(summary.counts.items())
        ],
        tile_count=sum(count for count, _ in summary.counts.values()),
        used_bytes=wire.int64(sum(size for _, size in summary.counts.values())),
        clock_trusted=summary.clock_trusted,
        starts_at=wire.timestamp(summary.now),
    )


def _cell_ranges(cells: CellMasks) -> Iterator[list[pb.CellRange]]:
    """The cells as rectangles, some at a time."""
    rectangles = cells.rectangles()
    while some := list(islice(rectangles, CHUNK_RECTANGLES)):
        yield [pb.CellRange(**rectangle._asdict()) for rectangle in some]
