"""The service TileCacheAdmin: each method validates, calls a service and packs the answer."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration

from tilecache.identity import SOURCE_NUMBERS
from tilecache.v1 import tile_cache_admin_pb2 as pb
from tilecache.v1 import tile_metadata_store_pb2 as store_pb
from tilecache.v1.tile_identity_pb2 import TILE_SOURCE_UNSPECIFIED
from tilecache_daemon.freshness_policy import FreshnessRule, Sector
from tilecache_daemon.geometry.polygon import Polygon
from tilecache_daemon.models import Eviction, FreshnessLabel, Limits, Pin
from tilecache_daemon.rpc import admin_requests, requests, wire
from tilecache_daemon.rpc.tile_updates import tile_updates
from tilecache_daemon.service.corrections import CorrectionService
from tilecache_daemon.service.eviction import EvictionService, EvictionSummary, Included
from tilecache_daemon.service.flights import FlightService
from tilecache_daemon.service.freshness import FreshnessService
from tilecache_daemon.service.pins import PinService
from tilecache_daemon.service.policy import PolicyService
from tilecache_daemon.service.purge import DeletionSummary, PurgeService
from tilecache_daemon.service.storage import StorageService
from tilecache_daemon.store.freshness import Relabelled
from tilecache_daemon.store.usage import UsageRow

CHUNK_TILES: Final = 1_000

Kind = TypeVar("Kind", str, int)


class AdminServicer:
    """Implements TileCacheAdmin."""

    def __init__(
        self,
        storage: StorageService,
        eviction: EvictionService,
        purge: PurgeService,
        corrections: CorrectionService,
        pins: PinService,
        flights: FlightService,
        policy: PolicyService,
        freshness: FreshnessService,
        limits: Limits,
        expose_metrics: Callable[[], str],
    ) -> None:
        self._storage = storage
        self._eviction = eviction
        self._purge = purge
        self._corrections = corrections
        self._pins = pins
        self._flights = flights
        self._policy = policy
        self._freshness = freshness
        self._limits = limits
        self._expose_metrics = expose_metrics

    async def get_metrics(self, _: pb.GetMetricsRequest) -> pb.GetMetricsResponse:
        return pb.GetMetricsResponse(text=await asyncio.to_thread(self._expose_metrics))

    async def get_storage_usage(self, _: pb.GetStorageUsageRequest) -> pb.GetStorageUsageResponse:
        usage = await self._storage.read_usage()
        pinned = await self._pins.read_usage()
        by_source = _sum_by(usage.rows, lambda row: row.source)
        by_zoom = _sum_by(usage.rows, lambda row: row.zoom)
        by_label = _sum_by(usage.rows, lambda row: row.label)
        pending_count, pending_bytes = usage.pending_removal
        return pb.GetStorageUsageResponse(
            total=_sum(usage.rows),
            sources=[
                pb.SourceUsage(
                    source=SOURCE_NUMBERS.get(source, TILE_SOURCE_UNSPECIFIED), usage=used
                )
                for source, used in sorted(by_source.items())
            ],
            zooms=[pb.ZoomUsage(zoom=zoom, usage=used) for zoom, used in sorted(by_zoom.items())],
            labels=[
                pb.LabelUsage(label=wire.LABEL_NUMBERS[label.value], usage=by_label[label.value])
                for label in FreshnessLabel
                if label.value in by_label
            ],
            pending_upload=_sum(row for row in usage.rows if row.pending_upload),
            pending_removal=pb.StorageUsage(
                tile_count=pending_count, used_bytes=wire.int64(pending_bytes)
            ),
            max_used_bytes=usage.max_used_bytes,
            evict_on_insert=usage.evict_on_insert,
            unknown_size_count=sum(row.unknown_size_count for row in usage.rows),
            pinned=pb.StorageUsage(
                tile_count=pinned.tile_count, used_bytes=wire.int64(pinned.used_bytes)
            ),
        )

    async def evict_tiles(
        self, request: pb.EvictTilesRequest
    ) -> AsyncIterator[pb.EvictTilesResponse]:
        summary = EvictionSummary(dry_run=request.dry_run)
        async for evicted in self._eviction.evict(
            admin_requests.eviction_goal(request),
            summary,
            include_pending_uploads=request.include_pending_uploads,
            include_pinned=request.include_pinned,
        ):
            for chunk in _chunks(evicted):
                yield pb.EvictTilesResponse(tiles=chunk)
        stops = [pb.EvictionStop.Value(f"EVICTION_STOP_{stop.name}") for stop in summary.stops]
        yield pb.EvictTilesResponse(
            summary=pb.EvictionSummary(
                evicted_count=summary.evicted_count,
                freed_bytes=wire.int64(summary.freed_bytes),
                used_bytes=wire.int64(summary.used_bytes),
                goal_met=pb.EVICTION_STOP_GOAL_MET in stops,
                stop=stops[0],
                stops=stops,
                pinned_count=summary.pinned_count,
                pin_names=sorted(summary.pin_names),
                pending_upload_count=summary.pending_upload_count,
                dry_run=summary.dry_run,
            )
        )

    async def list_evictions(self, request: pb.ListEvictionsRequest) -> pb.ListEvictionsResponse:
        size = requests.page_size(request.page_size)
        file_paths: list[str] = []
        if request.file_paths:
            file_paths = requests.file_paths(request.file_paths, self._limits.max_request_items)
        page = await self._eviction.list_evictions(
            admin_requests.after_id(request.page_token), size + 1, file_paths
        )
        tiles = next(_chunks(page, size), [])
        more = len(page) > len(tiles)
        return pb.ListEvictionsResponse(
            tiles=tiles, next_page_token=str(tiles[-1].eviction_id) if more else ""
        )

    async def confirm_evictions(
        self, request: pb.ConfirmEvictionsRequest
    ) -> pb.ConfirmEvictionsResponse:
        ids = admin_requests.eviction_ids(request, self._limits.max_request_items)
        return pb.ConfirmEvictionsResponse(confirmed=await self._eviction.confirm(ids))

    async def delete_tiles(
        self, request: pb.DeleteTilesRequest
    ) -> AsyncIterator[pb.DeleteTilesResponse]:
        summary = DeletionSummary(dry_run=request.dry_run)
        await self._pins.end()
        async for deleted in self._delete(request, summary):
            for chunk in _chunks(deleted):
                yield pb.DeleteTilesResponse(tiles=chunk)
        yield pb.DeleteTilesResponse(
            summary=pb.DeletionSummary(
                deleted_count=summary.deleted_count,
                freed_bytes=wire.int64(summary.freed_bytes),
                pending_upload_count=summary.pending_upload_count,
                pinned_count=summary.pinned_count,
                pin_names=sorted(summary.pin_names),
                not_found_tile_uuids=summary.not_found,
                changed_count=summary.changed_count,
                dry_run=summary.dry_run,
            )
        )

    def _delete(
        self, request: pb.DeleteTilesRequest, summary: DeletionSummary
    ) -> AsyncIterator[list[Eviction]]:
        purge = admin_requests.purge(request)
        include = Included(request.include_pending_uploads, request.include_pinned)
        if request.tile_uuids:
            most = self._limits.max_request_items
            requests.check_count("tile_uuids", len(request.tile_uuids), most)
            ids = [
                requests.uuid_text(f"tile_uuids[{index}]", tile_uuid)
                for index, tile_uuid in enumerate(request.tile_uuids)
            ]
            expected = admin_requests.expected_files(request)
            return self._purge.delete_by_id(ids, summary, include=include, expected=expected)
        if request.HasField("region"):
            return self._purge.delete_in(
                admin_requests.purge_areas(request), purge, summary, include=include
            )
        return self._purge.delete_anywhere(
            admin_requests.purge_zooms(request), purge, summary, include=include
        )

    async def update_tiles(self, request: pb.UpdateTilesRequest) -> pb.UpdateTilesResponse:
        updates = tile_updates(request, self._limits.max_request_items)
        outcomes = await self._corrections.update(updates, dry_run=request.dry_run)
        return pb.UpdateTilesResponse(
            outcomes=[
                pb.UpdateOutcome.Value(f"UPDATE_OUTCOME_{outcome.name}") for outcome in outcomes
            ]
        )

    async def set_pin(self, request: pb.SetPinRequest) -> pb.SetPinResponse:
        pin, fit = await self._pins.set(
            *admin_requests.new_pin(request.pin), dry_run=request.dry_run
        )
        return pb.SetPinResponse(
            pin=_pin(pin),
            missing_count=fit.missing_count,
            missing_bytes=wire.int64(fit.missing_bytes),
            kept_bytes=wire.int64(fit.kept_bytes),
            max_used_bytes=fit.max_used_bytes,
            fits=fit.fits,
        )

    async def list_pins(self, request: pb.ListPinsRequest) -> pb.ListPinsResponse:
        size = requests.page_size(request.page_size)
        page = await self._pins.list(request.page_token, size + 1)
        pins = next(wire.in_parts(map(_pin, page), size), [])
        more = len(page) > len(pins)
        return pb.ListPinsResponse(pins=pins, next_page_token=pins[-1].name if more else "")

    async def delete_pin(self, request: pb.DeletePinRequest) -> pb.DeletePinResponse:
        await self._pins.delete(admin_requests.pin_name("name", request.name))
        return pb.DeletePinResponse()

    async def set_flight(self, request: pb.SetFlightRequest) -> pb.SetFlightResponse:
        flight = await self._flights.set(admin_requests.new_flight(request.flight))
        return pb.SetFlightResponse(flight=wire.flight_message(flight))

    async def delete_flight(self, request: pb.DeleteFlightRequest) -> pb.DeleteFlightResponse:
        await self._flights.delete(requests.uuid_text("flight_id", request.flight_id))
        return pb.DeleteFlightResponse()

    async def list_sectors(self, request: pb.ListSectorsRequest) -> pb.ListSectorsResponse:
        size = requests.page_size(request.page_size)
        policy = await self._policy.read()
        page = [sector for sector in policy.sectors if sector.name > request.page_token]
        sectors = next(wire.in_parts(map(_sector, page), size), [])
        more = len(page) > len(sectors)
        return pb.ListSectorsResponse(
            sectors=sectors, next_page_token=sectors[-1].name if more else ""
        )

    async def set_sector(self, request: pb.SetSectorRequest) -> pb.SetSectorResponse:
        wanted = admin_requests.sector(request.sector)
        if request.dry_run:
            sector, counts = await self._policy.try_sector(*wanted)
            return pb.SetSectorResponse(
                sector=_sector(sector),
                relabelled_count=sum(each.tile_count for each in counts),
                relabelled=map(_relabelled, counts),
            )
        sector, relabelled = await self._policy.set_sector(*wanted)
        return pb.SetSectorResponse(sector=_sector(sector), relabelled_count=relabelled)

    async def delete_sector(self, request: pb.DeleteSectorRequest) -> pb.DeleteSectorResponse:
        name = admin_requests.sector_name("name", request.name)
        return pb.DeleteSectorResponse(relabelled_count=await self._policy.delete_sector(name))

    async def list_freshness_rules(
        self, _: pb.ListFreshnessRulesRequest
    ) -> pb.ListFreshnessRulesResponse:
        policy = await self._policy.read()
        rules = sorted(map(_rule, policy.rules), key=lambda rule: rule.classification)
        return pb.ListFreshnessRulesResponse(rules=rules)

    async def set_freshness_rule(
        self, request: pb.SetFreshnessRuleRequest
    ) -> pb.SetFreshnessRuleResponse:
        rule = admin_requests.freshness_rule(request.rule)
        if request.dry_run:
            counts = await self._policy.try_rule(rule)
            return pb.SetFreshnessRuleResponse(
                rule=_rule(rule),
                relabelled_count=sum(each.tile_count for each in counts),
                relabelled=map(_relabelled, counts),
            )
        relabelled = await self._policy.set_rule(rule)
        return pb.SetFreshnessRuleResponse(rule=_rule(rule), relabelled_count=relabelled)

    async def reevaluate_freshness(
        self, _: pb.ReevaluateFreshnessRequest
    ) -> AsyncIterator[pb.ReevaluateFreshnessResponse]:
        async for progress in self._freshness.reevaluate():
            yield pb.ReevaluateFreshnessResponse(
                evaluated_count=progress.evaluated, relabelled_count=progress.relabelled
            )

    async def explain_freshness(
        self, request: pb.ExplainFreshnessRequest
    ) -> pb.ExplainFreshnessResponse:
        found = await self._policy.explain(requests.tile_ref("tile", request.tile))
        verdict, age = found.verdict, Duration()
        age.FromTimedelta(found.age)
        return pb.ExplainFreshnessResponse(
            stored_label=wire.LABEL_NUMBERS[found.tile.freshness_label],
            current_label=wire.LABEL_NUMBERS[verdict.label.value],
            sector=_sector(verdict.sector) if verdict.sector else None,
            rule=_rule(verdict.rule) if verdict.rule else None,
            captured_at=wire.timestamp(found.tile.captured_at),
            age_months=found.age_months,
            age=age,
            next_change_at=wire.timestamp(found.next_change_at),
            next_label=wire.label_number(found.next_label),
            clock_trusted=found.clock_trusted,
            sectors=next(wire.in_parts(map(_sector, found.sectors), requests.MAX_PAGE_SIZE), []),
            explanation=found.sentence,
        )


def _sum(rows: Iterable[UsageRow]) -> pb.StorageUsage:
    counted = list(rows)
    return pb.StorageUsage(
        tile_count=sum(row.tile_count for row in counted),
        used_bytes=wire.int64(sum(row.used_bytes for row in counted)),
    )


def _sum_by(
    rows: Iterable[UsageRow], kind: Callable[[UsageRow], Kind]
) -> dict[Kind, pb.StorageUsage]:
    groups: defaultdict[Kind, list[UsageRow]] = defaultdict(list)
    for row in rows:
        groups[kind(row)].append(row)
    return {name: _sum(group) for name, group in groups.items()}


def _chunks(
    evictions: Iterable[Eviction], most: int = CHUNK_TILES
) -> Iterator[list[pb.EvictedTile]]:
    return wire.in_parts(map(_evicted_tile, evictions), most)


def _evicted_tile(eviction: Eviction) -> pb.EvictedTile:
    return pb.EvictedTile(
        eviction_id=eviction.id,
        tile_uuid=eviction.tile_uuid,
        key=wire.tile_key(eviction),
        file_path=eviction.file_path,
        content_sha256=eviction.content_sha256 or "",
        disk_bytes=eviction.disk_bytes or 0,
        evicted_at=wire.timestamp(eviction.evicted_at),
        accessed_at=wire.timestamp(eviction.accessed_at),
        reason=pb.EvictionReason.Value(f"EVICTION_REASON_{eviction.reason.upper()}"),
    )


def _pin(pin: Pin) -> pb.Pin:
    return pb.Pin(
        name=pin.name,
        region=store_pb.Region.FromString(pin.region),
        zooms=pin.zooms,
        expires_at=wire.timestamp(pin.expires_at),
        created_at=wire.timestamp(pin.created_at),
        ended=pin.ended,
        cell_count=pin.cell_count,
        held=pb.StorageUsage(tile_count=pin.tile_count, used_bytes=wire.int64(pin.used_bytes)),
    )


def _sector(sector: Sector) -> pb.Sector:
    box = sector.bounding_box
    return pb.Sector(
        name=sector.name,
        classification=pb.SectorClassification.Value(
            f"SECTOR_CLASSIFICATION_{sector.classification.name}"
        ),
        bounding_box=store_pb.BoundingBox(**box._asdict()) if box else None,
        created_at=wire.timestamp(sector.created_at),
        polygon=_polygon(sector.polygon) if sector.polygon else None,
    )


def _polygon(polygon: Polygon) -> store_pb.Polygon:
    outer, *holes = (
        store_pb.Ring(
            points=[
                store_pb.LatLng(latitude=latitude, longitude=longitude)
                for latitude, longitude in ring
            ]
        )
        for ring in polygon.rings
    )
    return store_pb.Polygon(outer=outer, holes=holes)


def _relabelled(relabelled: Relabelled) -> pb.RelabelCount:
    return pb.RelabelCount(
        old_label=wire.LABEL_NUMBERS[relabelled.old_label],
        new_label=wire.LABEL_NUMBERS[relabelled.new_label],
        tile_count=relabelled.tile_count,
        recently_used_count=relabelled.recently_used_count,
    )


def _rule(rule: FreshnessRule) -> pb.FreshnessRule:
    return pb.FreshnessRule(
        classification=pb.SectorClassification.Value(
            f"SECTOR_CLASSIFICATION_{rule.classification.name}"
        ),
        max_age_months=rule.max_age_months,
        action=pb.FreshnessAction.Value(f"FRESHNESS_ACTION_{rule.action.name}"),
    )
