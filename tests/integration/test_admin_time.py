"""Ages at the ends of months, and wrong clocks, with clocks that the test sets."""

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.admin import (
    ACTIVE_CONFLICT,
    DOWNGRADE,
    REJECT,
    STABLE_REAR,
    evict,
    explain,
    read_label,
    reevaluate,
    set_rule,
    set_sector,
    touch,
)
from tests.clocked_daemon import ClockedDaemon
from tests.tiles import TIMEOUT_S, Block, insert, key_name, tile, tile_key, tile_uuid
from tests.waiting import eventually
from tilecache.errors import CallError
from tilecache.v1.tile_metadata_store_pb2 import (
    FRESHNESS_LABEL_DOWNGRADED,
    FRESHNESS_LABEL_REJECTED,
    INSERT_OUTCOME_DOWNGRADED,
    INSERT_OUTCOME_INSERTED,
    ClockStatus,
    GetServerInfoRequest,
)

EVERYWHERE = (-90.0, -180.0, 90.0, 180.0)
FIRST, SECOND, THIRD = tile_key(10, 1, 1), tile_key(10, 2, 2), tile_key(10, 3, 3)
MICROSECOND = timedelta(microseconds=1)
BOOT_1970 = datetime(1970, 1, 1, 0, 0, 41, tzinfo=timezone.utc)


def day(year: int, month: int, number: int) -> datetime:
    return datetime(year, month, number, 7, 30, 15, 123456, tzinfo=timezone.utc)


NOON = day(2027, 6, 1)

EDGES = [
    # captured at, months, expires at
    (day(2026, 11, 30), 3, day(2027, 2, 28)),
    (day(2027, 8, 31), 6, day(2028, 2, 29)),
    (day(2026, 8, 31), 6, day(2027, 2, 28)),
    (day(2028, 2, 29), 6, day(2028, 8, 29)),
    (day(2028, 2, 29), 12, day(2029, 2, 28)),
    (day(2027, 2, 28), 12, day(2028, 2, 28)),
    (day(2027, 2, 28), 6, day(2027, 8, 28)),
    (day(2026, 12, 31), 2, day(2027, 2, 28)),
]
WEST, EAST = (-90.0, -180.0, 90.0, -1.0), (-90.0, 1.0, 90.0, 180.0)
IN_FRONT, LATE_IN_FRONT = tile_key(10, 1, 1), tile_key(10, 2, 1)
IN_REAR, LATE_IN_REAR = tile_key(10, 1000, 1), tile_key(10, 1001, 1)


@pytest.fixture
def daemon(database: str, short_directory: Path) -> Iterator[ClockedDaemon]:
    """A daemon whose clocks are set to noon."""
    with ClockedDaemon(short_directory, NOON, dsn=database, access_recent_s=0) as process:
        yield process


def clock(daemon: ClockedDaemon) -> ClockStatus:
    info = daemon.client.store.GetServerInfo(GetServerInfoRequest(), timeout=TIMEOUT_S)
    status: ClockStatus = info.clock
    return status


def moment(message: Any) -> datetime:
    return datetime.fromtimestamp(0, timezone.utc) + timedelta(
        microseconds=message.ToMicroseconds()
    )


def set_policy(daemon: ClockedDaemon, classification: Any, months: int, action: Any) -> None:
    """Sets the rule of a classification, and a sector of the whole Earth."""
    other = STABLE_REAR if classification == ACTIVE_CONFLICT else ACTIVE_CONFLICT
    set_rule(daemon.admin_client, other, 1_200 if other == STABLE_REAR else 1, DOWNGRADE)
    set_rule(daemon.admin_client, classification, months, action)
    set_sector(daemon.admin_client, "s", classification, EVERYWHERE)


@pytest.mark.parametrize(("captured_at", "months", "expires_at"), EDGES)
def test_tiles_age_by_calendar_months(
    database: str, short_directory: Path, captured_at: datetime, months: int, expires_at: datetime
) -> None:
    """For each action, at the insert and when stored, a microsecond before expiry and at it."""
    with ClockedDaemon(short_directory, expires_at - MICROSECOND, dsn=database) as daemon:
        client, admin = daemon.client, daemon.admin_client
        set_rule(admin, ACTIVE_CONFLICT, months, REJECT)
        set_rule(admin, STABLE_REAR, months, DOWNGRADE)
        set_sector(admin, "front", ACTIVE_CONFLICT, WEST)
        set_sector(admin, "rear", STABLE_REAR, EAST)
        for key in (IN_FRONT, IN_REAR):
            stored = insert(client, tile(key, captured_at=captured_at))
            assert stored.outcome == INSERT_OUTCOME_INSERTED
            assert moment(explain(admin, key).next_change_at) == expires_at
        assert reevaluate(admin) == 0

        daemon.pass_time(MICROSECOND)

        with pytest.raises(CallError, match=f"rejects tiles older than {months} months"):
            insert(client, tile(LATE_IN_FRONT, captured_at=captured_at))
        late = insert(client, tile(LATE_IN_REAR, captured_at=captured_at))
        assert late.outcome == INSERT_OUTCOME_DOWNGRADED
        assert late.tile.freshness_label == FRESHNESS_LABEL_DOWNGRADED
        assert reevaluate(admin) == 2
        for key, label in ((IN_FRONT, "rejected"), (IN_REAR, "downgraded")):
            assert read_label(client, key) == label
            explanation = explain(admin, key)
            assert explanation.stored_label == explanation.current_label
            assert not explanation.HasField("next_change_at")


def test_labels_are_updated_once_a_day(daemon: ClockedDaemon) -> None:
    set_policy(daemon, STABLE_REAR, 12, DOWNGRADE)
    insert(daemon.client, tile(FIRST, captured_at=NOON - timedelta(days=364, hours=12)))
    assert read_label(daemon.client, FIRST) == "fresh"

    daemon.pass_time(timedelta(days=1))

    eventually(lambda: read_label(daemon.client, FIRST) == "downgraded")


def test_labels_are_updated_at_the_start(daemon: ClockedDaemon) -> None:
    set_policy(daemon, STABLE_REAR, 12, DOWNGRADE)
    insert(daemon.client, tile(FIRST, captured_at=NOON - timedelta(days=300)))
    assert daemon.stop() == 0
    daemon.pass_time(timedelta(days=100))

    daemon.start()

    eventually(lambda: read_label(daemon.client, FIRST) == "downgraded")


@pytest.fixture(params=["boot", "jump"])
def behind(daemon: ClockedDaemon, request: pytest.FixtureRequest) -> ClockedDaemon:
    """A daemon with three tiles in a sector, the second expired, whose clock then
    starts in 1970, or jumps back while it runs."""
    set_policy(daemon, STABLE_REAR, 12, DOWNGRADE)
    for key in (FIRST, THIRD):
        insert(daemon.client, tile(key, disk_bytes=10, captured_at=NOON - timedelta(days=1)))
    insert(daemon.client, tile(SECOND, disk_bytes=10, captured_at=NOON - timedelta(days=400)))
    if request.param == "boot":
        assert daemon.stop() == 0
        daemon.set_clock(BOOT_1970)
        daemon.start()
    else:
        daemon.set_clock(NOON - timedelta(days=200))
    return daemon


def test_a_clock_that_is_behind_is_reported(behind: ClockedDaemon) -> None:
    status = clock(behind)

    assert not status.trusted
    assert "at least 2027-06-01 07:30:15Z" in status.reason
    assert moment(status.time) >= NOON


def test_no_tile_becomes_fresh_while_the_clock_is_behind(behind: ClockedDaemon) -> None:
    assert reevaluate(behind.admin_client) == 0
    assert read_label(behind.client, SECOND) == "downgraded"

    young = tile(tile_key(10, 4, 4), captured_at=NOON - timedelta(days=2))
    stored = insert(behind.client, young)
    old = insert(behind.client, tile(tile_key(10, 5, 5), captured_at=NOON - timedelta(days=400)))

    labels = (stored.tile.freshness_label, old.tile.freshness_label)
    assert labels == (FRESHNESS_LABEL_DOWNGRADED, FRESHNESS_LABEL_DOWNGRADED)
    assert reevaluate(behind.admin_client) == 0


def test_a_relaxed_rule_makes_no_tile_fresh_while_the_clock_is_behind(
    behind: ClockedDaemon,
) -> None:
    set_rule(behind.admin_client, STABLE_REAR, 24, DOWNGRADE)

    assert read_label(behind.client, SECOND) == "downgraded"
    assert "not trusted" in explain(behind.admin_client, SECOND).explanation


def test_a_rejected_tile_is_refused_while_the_clock_is_behind(behind: ClockedDaemon) -> None:
    set_policy(behind, ACTIVE_CONFLICT, 6, REJECT)

    with pytest.raises(CallError, match="rejects tiles older"):
        insert(behind.client, tile(tile_key(10, 5, 5), captured_at=NOON - timedelta(days=400)))


def test_the_order_of_use_is_correct_while_the_clock_is_behind(behind: ClockedDaemon) -> None:
    touch(behind.client, FIRST)

    eviction = evict(behind.admin_client, max_used_bytes=0)

    assert [key_name(evicted.key) for evicted in eviction.tiles] == [
        key_name(key) for key in (THIRD, SECOND, FIRST)
    ]


def test_the_order_of_use_survives_a_restart_in_1970(behind: ClockedDaemon) -> None:
    touch(behind.client, FIRST, THIRD)
    assert behind.stop() == 0
    behind.set_clock(BOOT_1970)
    behind.start()
    touch(behind.client, SECOND)

    eviction = evict(behind.admin_client, max_used_bytes=0)

    assert [key_name(evicted.key) for evicted in eviction.tiles] == [
        key_name(key) for key in (FIRST, THIRD, SECOND)
    ]


def test_accesses_are_not_written_with_times_before_the_latest_seen(
    behind: ClockedDaemon, database: str
) -> None:
    touch(behind.client, FIRST)
    assert behind.stop() == 0

    with psycopg.connect(database) as sql:
        ((accessed_at,),) = sql.execute(
            "SELECT accessed_at FROM tiles WHERE accessed_at IS NOT NULL"
        ).fetchall()
    assert accessed_at >= NOON


def test_correcting_the_clock_restores_trust_and_labels(behind: ClockedDaemon) -> None:
    stored = insert(behind.client, tile(tile_key(10, 4, 4), captured_at=NOON - timedelta(days=2)))
    assert stored.tile.freshness_label == FRESHNESS_LABEL_DOWNGRADED

    behind.set_clock(NOON + timedelta(minutes=5))

    assert clock(behind).trusted
    assert clock(behind).reason == ""
    eventually(lambda: read_label(behind.client, tile_key(10, 4, 4)) == "fresh")
    assert read_label(behind.client, SECOND) == "downgraded"


def test_a_small_correction_does_not_end_trust(daemon: ClockedDaemon, block: Block) -> None:
    insert(daemon.client, tile(block.key()))

    daemon.set_clock(NOON - timedelta(seconds=1))

    assert clock(daemon).trusted


def test_the_bound_on_lost_accesses_is_published(daemon: ClockedDaemon) -> None:
    info = daemon.client.store.GetServerInfo(GetServerInfoRequest(), timeout=TIMEOUT_S)

    assert info.access_loss_bound.ToTimedelta() == timedelta(seconds=5)


def test_a_recently_written_access_is_not_written_again(
    database: str, short_directory: Path
) -> None:
    settings: dict[str, Any] = {"access_flush_interval_s": 0.05, "access_recent_s": 60}
    with (
        ClockedDaemon(short_directory, NOON, dsn=database, **settings) as daemon,
        psycopg.connect(database, autocommit=True) as sql,
    ):

        def written() -> list[Any]:
            return sql.execute(
                "SELECT x, access_order FROM tiles WHERE accessed_at IS NOT NULL ORDER BY x"
            ).fetchall()

        for key in (FIRST, SECOND):
            insert(daemon.client, tile(key))
        touch(daemon.client, FIRST)
        once = eventually(written)
        daemon.pass_time(timedelta(seconds=59))
        touch(daemon.client, FIRST, SECOND)
        twice = eventually(lambda: len(written()) == 2 and written())
        assert twice[0] == once[0], "the second access was too recent"

        daemon.pass_time(timedelta(seconds=1))
        touch(daemon.client, FIRST)
        eventually(lambda: written()[0] != once[0])


def test_rejected_tiles_stay_rejected_after_a_start_in_1970(
    database: str, short_directory: Path
) -> None:
    with ClockedDaemon(short_directory, NOON, dsn=database) as daemon:
        insert(daemon.client, tile(FIRST, captured_at=NOON - timedelta(days=200)))
        set_policy(daemon, ACTIVE_CONFLICT, 6, REJECT)
        assert read_label(daemon.client, FIRST) == "rejected"
        assert daemon.stop() == 0
        daemon.set_clock(BOOT_1970)
        daemon.start()

        reevaluate(daemon.admin_client)

        assert read_label(daemon.client, FIRST) == "rejected"
        assert explain(daemon.admin_client, FIRST).current_label == FRESHNESS_LABEL_REJECTED


@pytest.mark.parametrize("restarted", [False, True])
def test_a_clock_that_was_far_ahead_leaves_no_trace(
    daemon: ClockedDaemon, database: str, restarted: bool
) -> None:
    set_policy(daemon, ACTIVE_CONFLICT, 6, REJECT)
    insert(daemon.client, tile(FIRST, captured_at=NOON - timedelta(days=1)))
    daemon.set_clock(NOON + timedelta(days=5 * 365))
    touch(daemon.client, FIRST)
    assert reevaluate(daemon.admin_client) == 1
    insert(daemon.client, tile(SECOND, captured_at=NOON + timedelta(days=5 * 365)))
    assert read_label(daemon.client, FIRST) == "rejected"
    if restarted:
        assert daemon.stop() == 0

    daemon.set_clock(NOON + timedelta(minutes=5))
    if restarted:
        daemon.start()
        assert "implausible_times_ignored" in daemon.log

    assert clock(daemon).trusted
    assert moment(clock(daemon).time) == NOON + timedelta(minutes=5)
    eventually(lambda: read_label(daemon.client, FIRST) == "fresh")

    # Its use is recorded, though the last one that was written lies ahead.
    touch(daemon.client, FIRST)
    assert daemon.stop() == 0
    with psycopg.connect(database) as sql:
        ((accessed_at,),) = sql.execute(
            "SELECT accessed_at FROM tiles WHERE tile_uuid = %s", [tile_uuid(FIRST)]
        ).fetchall()
    assert accessed_at == NOON + timedelta(minutes=5)


def test_a_clock_beyond_what_is_plausible_rejects_no_tile(daemon: ClockedDaemon) -> None:
    set_policy(daemon, ACTIVE_CONFLICT, 6, REJECT)
    insert(daemon.client, tile(FIRST, captured_at=NOON - timedelta(days=1)))

    daemon.set_clock(day(2099, 1, 1))

    assert not clock(daemon).trusted
    assert "2099-01-01" in clock(daemon).reason
    assert reevaluate(daemon.admin_client) == 0
    assert read_label(daemon.client, FIRST) == "fresh"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tiles SET accessed_at = %s",
        "UPDATE tiles SET created_at = %s",
        "UPDATE tiles SET uploaded_at = %s",
        "UPDATE tile_evictions SET evicted_at = %s",
        "UPDATE sector_classifications SET created_at = %s",
    ],
)
def test_each_time_of_the_daemons_own_is_believed_if_it_is_plausible(
    daemon: ClockedDaemon, database: str, statement: str
) -> None:
    set_policy(daemon, STABLE_REAR, 12, DOWNGRADE)
    for key in (FIRST, SECOND):
        insert(daemon.client, tile(key, captured_at=NOON - timedelta(days=1)))
    evict(daemon.admin_client, free_bytes=1)
    assert daemon.stop() == 0

    for ahead, trusted in ((timedelta(days=300), False), (timedelta(days=3_000), True)):
        with psycopg.connect(database) as sql:
            sql.execute(statement, [NOON + ahead])
        daemon.start()
        assert clock(daemon).trusted is trusted
        assert daemon.stop() == 0
