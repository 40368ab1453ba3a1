"""A random history: clients of every kind change the same tiles at once, beside a daemon that is
killed now and then.

Each writer owns some keys, so that it knows what they must hold: what was acknowledged, or one of
several where a call's outcome is unknown because the daemon was killed in it. Evictions, purges,
relabelling and the removal of files go over all keys.
"""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import Any

import grpc
import psycopg

from tests.admin import (
    ACTIVE_CONFLICT,
    DOWNGRADE,
    REJECT,
    STABLE_REAR,
    confirm,
    delete,
    evict,
    list_evictions,
    set_rule,
    set_sector,
    touch,
)
from tests.daemon_process import DaemonProcess
from tests.tiles import (
    FLIGHT,
    GOOGLEMAPS,
    NOW,
    ONBOARD,
    TIMEOUT_S,
    bulk_insert,
    cell_region,
    insert,
    tile,
    tile_key,
    tile_uuid,
    timestamp,
)
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.mercator import cell_bounds
from tilecache.v1.tile_cache_admin_pb2 import (
    UPDATE_OUTCOME_UNCHANGED,
    UPDATE_OUTCOME_UPDATED,
    DeleteSectorRequest,
    TileUpdate,
    UpdateTilesRequest,
)
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    INSERT_OUTCOME_ALREADY_PRESENT,
    INSERT_OUTCOME_DOWNGRADED,
    INSERT_OUTCOME_INSERTED,
    INSERT_OUTCOME_KEPT_EXISTING,
    INSERT_OUTCOME_REPLACED,
    MARK_OUTCOME_ALREADY_MARKED,
    MARK_OUTCOME_MARKED,
    ON_CONFLICT_KEEP_EXISTING,
    ON_CONFLICT_REPLACE_IF_NEWER,
    ON_CONFLICT_UNSPECIFIED,
    MarkUploadedRequest,
    TileMetadata,
    UploadedTile,
)

ZOOM = 18
X, Y = 32 * 4_000, 32 * 3_000
COLUMNS = 6
WRITERS = 3
FILES = [f"file{number}.jpg" for number in range(12)]
AGES_DAYS = (1, 100, 400, 800)
SECTORS = ("north", "south")
STEPS = 40

_UNKNOWN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_REFUSED = (
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
_versions = count(1)


@dataclass(frozen=True)
class Stored:
    """What a key may hold: its content's hash, its capture, and whether it is marked as
    uploaded."""

    content_sha256: str
    captured_at: datetime
    uploaded: bool = False


@dataclass
class Owned:
    """A key and what it may hold; None is no tile."""

    key: TileKey
    possible: set[Stored | None] = field(default_factory=lambda: {None})

    def may_be_evicted(self, state: Stored | None) -> bool:
        return state is None or self.key.source == GOOGLEMAPS or state.uploaded


class History:
    """One history on one daemon and its database."""

    def __init__(self, daemon: DaemonProcess, database: str, seed: int) -> None:
        self._daemon = daemon
        self._database = database
        self._chance = random.Random(seed)
        self._over = threading.Event()
        self.owned = [
            [
                Owned(tile_key(ZOOM, X + column, Y + writer, source, flight))
                for column in range(COLUMNS)
                for source, flight in ((GOOGLEMAPS, None), (ONBOARD, FLIGHT))
            ]
            for writer in range(WRITERS)
        ]

    def run(self) -> None:
        """Runs all clients to their end."""
        seeds = [self._chance.random() for _ in range(WRITERS + 4)]
        with ThreadPoolExecutor() as threads:
            writers = [
                threads.submit(self._write, random.Random(seed), owned)
                for seed, owned in zip(seeds, self.owned, strict=False)
            ]
            others = [
                threads.submit(self._repeat, random.Random(seed), step)
                for seed, step in zip(
                    seeds[WRITERS:],
                    (self._operate, self._remove_files, self._check_list, self._kill),
                    strict=True,
                )
            ]
            try:
                for writer in writers:
                    writer.result()
            finally:
                self._over.set()
            for other in others:
                other.result()

    def _write(self, chance: random.Random, owned: list[Owned]) -> None:
        with TileCacheClient(self._daemon.admin_socket_path) as client:
            for _ in range(STEPS):
                steps = (self._insert, self._insert, self._bulk, self._touch, self._mark)
                chance.choice((*steps, self._correct))(client, chance, owned)

    def _repeat(self, chance: random.Random, step: Callable[..., None]) -> None:
        with TileCacheClient(self._daemon.admin_socket_path) as client:
            while not self._over.is_set():
                try:
                    step(client, chance)
                except CallError as error:
                    if error.code not in (*_UNKNOWN, *_REFUSED):
                        raise

    def _insert(self, client: TileCacheClient, chance: random.Random, owned: list[Owned]) -> None:
        target, on_conflict = chance.choice(owned), _on_conflict(chance)
        message = self._new_tile(target, chance)
        try:
            outcome = insert(client, message, on_conflict).outcome
        except CallError as error:
            if error.code in _UNKNOWN:
                self._note_possible(target, message)
            elif error.code not in _REFUSED:
                raise
            return
        self._note_outcome(target, message, outcome)

    def _bulk(self, client: TileCacheClient, chance: random.Random, owned: list[Owned]) -> None:
        targets, on_conflict = chance.sample(owned, 4), _on_conflict(chance)
        messages = [self._new_tile(target, chance) for target in targets]
        try:
            (answer,) = bulk_insert(client, messages, on_conflict=on_conflict)
        except CallError as error:
            if error.code in _UNKNOWN:
                for target, message in zip(targets, messages, strict=True):
                    self._note_possible(target, message)
            elif error.code not in _REFUSED:
                raise
            return
        refused = {each.index for each in answer.refused}
        for index, (target, message) in enumerate(zip(targets, messages, strict=True)):
            if index not in refused:
                # Something is stored; the counts do not say which of both.
                self._note_possible(target, message)
                target.possible.discard(None)
                self._allow_eviction(target)

    def _touch(self, client: TileCacheClient, chance: random.Random, owned: list[Owned]) -> None:
        try:
            touch(client, *(each.key for each in chance.sample(owned, 3)))
        except CallError as error:
            if error.code not in _UNKNOWN:
                raise

    def _mark(self, client: TileCacheClient, chance: random.Random, owned: list[Owned]) -> None:
        target = chance.choice([each for each in owned if each.key.source == ONBOARD])
        states = sorted((state for state in target.possible if state), key=repr)
        if not states:
            return
        content_sha256 = chance.choice(states).content_sha256
        mark = UploadedTile(tile_uuid=tile_uuid(target.key), content_sha256=content_sha256)
        marked: set[Stored | None] = {
            replace(state, uploaded=True)
            for state in states
            if state.content_sha256 == content_sha256
        }
        try:
            request = MarkUploadedRequest(tiles=[mark])
            (outcome,) = client.store.MarkUploaded(request, timeout=TIMEOUT_S).outcomes
        except CallError as error:
            if error.code not in (*_UNKNOWN, *_REFUSED):
                raise
            target.possible |= marked
        else:
            if outcome in (MARK_OUTCOME_MARKED, MARK_OUTCOME_ALREADY_MARKED):
                target.possible = marked
        self._allow_eviction(target)

    def _correct(self, client: TileCacheClient, chance: random.Random, owned: list[Owned]) -> None:
        """Corrects a capture time. A corrected path would leave a file that nobody owns."""
        target = chance.choice(owned)
        states = sorted((state for state in target.possible if state), key=repr)
        if not states:
            return
        content_sha256 = chance.choice(states).content_sha256
        captured_at = NOW - timedelta(days=chance.choice(AGES_DAYS), seconds=chance.randrange(60))
        update = TileUpdate(
            tile_uuid=tile_uuid(target.key),
            content_sha256=content_sha256,
            captured_at=timestamp(captured_at),
        )
        corrected: set[Stored | None] = {
            replace(state, captured_at=captured_at)
            for state in states
            if state.content_sha256 == content_sha256
        }
        try:
            request = UpdateTilesRequest(tiles=[update])
            (outcome,) = client.admin.UpdateTiles(request, timeout=TIMEOUT_S).outcomes
        except CallError as error:
            if error.code not in (*_UNKNOWN, *_REFUSED):
                raise
            target.possible |= corrected
        else:
            if outcome in (UPDATE_OUTCOME_UPDATED, UPDATE_OUTCOME_UNCHANGED):
                target.possible = corrected
        self._allow_eviction(target)

    def _new_tile(self, target: Owned, chance: random.Random) -> TileMetadata:
        message = tile(
            target.key,
            f"content {next(_versions)}",
            NOW - timedelta(days=chance.choice(AGES_DAYS), seconds=chance.randrange(86_400)),
            # Tiles of several owners share files.
            file_path=chance.choice(FILES),
            disk_bytes=chance.randrange(1, 1_000),
        )
        stored = next((state for state in target.possible if state), None)
        if stored and chance.random() < 0.2:
            message.content_sha256 = stored.content_sha256
        return message

    def _note_outcome(self, target: Owned, message: TileMetadata, outcome: Any) -> None:
        new = _stored(message)
        same = {
            each for each in target.possible if each and each.content_sha256 == new.content_sha256
        }
        if outcome in (INSERT_OUTCOME_INSERTED, INSERT_OUTCOME_DOWNGRADED):
            target.possible = {new}
        elif outcome == INSERT_OUTCOME_REPLACED:
            target.possible = {new} | {replace(new, uploaded=each.uploaded) for each in same}
        elif outcome == INSERT_OUTCOME_ALREADY_PRESENT:
            # Or an attempt before this one, which the client repeated, has stored it.
            target.possible = {new} | same
        else:
            assert outcome == INSERT_OUTCOME_KEPT_EXISTING
            target.possible = {each for each in target.possible if each}
        self._allow_eviction(target)

    def _note_possible(self, target: Owned, message: TileMetadata) -> None:
        new = _stored(message)
        target.possible |= {new} | {
            replace(new, uploaded=True)
            for each in target.possible
            if each and each.uploaded and each.content_sha256 == new.content_sha256
        }
        self._allow_eviction(target)

    def _allow_eviction(self, target: Owned) -> None:
        if any(target.may_be_evicted(state) for state in target.possible):
            target.possible.add(None)

    def _operate(self, client: TileCacheClient, chance: random.Random) -> None:
        chance.choice((_evict, _purge, _set_sector, _delete_sector, _set_rule))(client, chance)

    def _remove_files(self, client: TileCacheClient, chance: random.Random) -> None:
        listed = list(list_evictions(client))
        ids = [each.eviction_id for each in chance.sample(listed, chance.randint(0, len(listed)))]
        if ids:
            # Here a remover deletes the files.
            assert self._files_listed_and_named() == []
            confirm(client, ids)

    def _check_list(self, _: TileCacheClient, __: random.Random) -> None:
        assert self._files_listed_and_named() == []
        self._over.wait(0.02)

    def _files_listed_and_named(self) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._database, autocommit=True) as connection:
            return connection.execute(
                "SELECT file_path FROM tiles JOIN tile_evictions USING (file_path)"
            ).fetchall()

    def _kill(self, _: TileCacheClient, chance: random.Random) -> None:
        if not self._over.wait(chance.uniform(0.2, 1.2)):
            self._daemon.kill()
            self._daemon.start()


def _stored(message: TileMetadata) -> Stored:
    captured_at = message.captured_at.ToDatetime(timezone.utc)
    return Stored(message.content_sha256, captured_at)


def _on_conflict(chance: random.Random) -> Any:
    return chance.choice(
        (ON_CONFLICT_UNSPECIFIED, ON_CONFLICT_KEEP_EXISTING, ON_CONFLICT_REPLACE_IF_NEWER)
    )


def _evict(client: TileCacheClient, chance: random.Random) -> None:
    evict(client, free_bytes=chance.randrange(1, 3_000))


def _purge(client: TileCacheClient, chance: random.Random) -> None:
    row = chance.randrange(WRITERS)
    delete(client, zooms=[ZOOM], region=cell_region(X, X + COLUMNS, Y + row, Y + row))


def _set_sector(client: TileCacheClient, chance: random.Random) -> None:
    box = cell_bounds(ZOOM, X + chance.randrange(COLUMNS), Y + chance.randrange(WRITERS))
    classification = chance.choice((ACTIVE_CONFLICT, STABLE_REAR))
    set_sector(
        client,
        chance.choice(SECTORS),
        classification,
        (box.south - 0.001, box.west, box.north, box.east + 0.002),
    )


def _delete_sector(client: TileCacheClient, chance: random.Random) -> None:
    try:
        request = DeleteSectorRequest(name=chance.choice(SECTORS))
        client.admin.DeleteSector(request, timeout=TIMEOUT_S)
    except CallError as error:
        if error.code is not grpc.StatusCode.NOT_FOUND:
            raise


def _set_rule(client: TileCacheClient, chance: random.Random) -> None:
    if chance.random() < 0.5:
        set_rule(client, ACTIVE_CONFLICT, chance.choice((1, 6)), REJECT)
    else:
        set_rule(client, STABLE_REAR, chance.choice((12, 24)), chance.choice((DOWNGRADE, REJECT)))
