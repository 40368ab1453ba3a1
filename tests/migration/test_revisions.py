"""The revisions: what an upgrade changes, and that a downgrade reverts exactly that."""

import subprocess
import sys
from itertools import count
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from alembic.config import Config as AlembicConfig
from alembic.script import ScriptDirectory

from tests.migration.observed_database import FLIGHT, OLD_TILES, Database
from tilecache.identity import derive_location_hash, derive_tile_id
from tilecache_daemon.config import Config
from tilecache_daemon.schema.migrator import (
    HEAD_REVISION,
    REVISIONS,
    MigrationError,
    apply_migrations,
    downgrade,
    find_migrations,
    plan_migrations,
)

LOCKED_IDS = [
    "17f7ac7e-6c25-5050-a7cd-b6578cd5f323",
    "9592538c-5702-5dbb-b274-193c82925556",
    "24721fde-bf91-587b-a5e5-1c21bec0b3ad",
    "888b449f-12f1-5b22-a9a4-b78bfbb4a300",
    "13154f67-6ec4-5ca8-a560-3e5c080d4ac5",
]
OLD_CHECK = (
    "tiles ck_tiles_freshness_status CHECK ((freshness_status = "
    "ANY (ARRAY['fresh'::text, 'stale_warn'::text, 'stale_reject'::text])))"
)
MEANT = {
    "prefer-bigint-over-int": "a cell's numbers end at 2^22, months and pixels sooner",
    "prefer-text-field": "Alembic's own table",
    "adding-not-nullable-field": "there are no readers while the schema changes",
    "ban-drop-constraint": "the one check that is widened",
    "require-lock-timeout": "the runner sets it",
    "require-statement-timeout": "the runner disables it",
}
"""Accepted warnings of squawk, with the reason."""
TABLES = ("flights", "sector_classifications", "tiles")


def upgrade(database: Database) -> None:
    apply_migrations(Config(dsn=database.dsn))


def scripts() -> ScriptDirectory:
    config = AlembicConfig()
    config.set_main_option("script_location", str(find_migrations()))
    return ScriptDirectory.from_config(config)


def test_there_is_one_head_and_the_file_names_are_the_chain() -> None:
    walked = [script.revision for script in scripts().walk_revisions()]

    assert scripts().get_heads() == [HEAD_REVISION]
    assert list(REVISIONS) == walked[::-1]


def test_the_ids_of_released_revisions_are_unchanged() -> None:
    assert REVISIONS[:10] == (
        "0001_initial",
        "0002_c6_tile_identity_and_lru",
        "0003_access_sequence",
        "0004_usage_and_removals",
        "0005_block_notifications",
        "0006_file_owners",
        "0007_valid_times",
        "0008_pins",
        "0009_sector_polygons",
        "0010_flights",
    )


def test_revisions_do_not_import_the_package() -> None:
    sources = [file.read_text() for file in find_migrations().rglob("*.py")]

    assert len(sources) == len(REVISIONS) + 1
    assert not [source for source in sources if "tilecache_daemon" in source]


def test_squawk_finds_no_hazard_that_is_not_accepted(empty: Database, tmp_path: Path) -> None:
    file = tmp_path / "plan.sql"
    file.write_text("\n".join(revision.sql for revision in plan_migrations(empty.dsn)))

    found = subprocess.run(
        [
            Path(sys.executable).with_name("squawk"),
            "--pg-version=14",
            "--assume-in-transaction",
            f"--exclude={','.join(MEANT)}",
            file,
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert found.returncode == 0, found.stdout + found.stderr


def test_an_empty_database_gets_the_written_schema(empty: Database, written: Database) -> None:
    upgrade(empty)

    assert empty.catalog() == written.catalog()
    assert empty.revisions() == [HEAD_REVISION]


def test_a_populated_old_database_gets_the_written_schema(old: Database, written: Database) -> None:
    upgrade(old)

    assert old.catalog() == written.catalog()


def test_old_tiles_get_their_locked_ids(old: Database) -> None:
    upgrade(old)

    rows = old.query("SELECT tile_uuid::text FROM tiles ORDER BY id")
    assert [tile_uuid for (tile_uuid,) in rows] == LOCKED_IDS


def test_old_tiles_have_no_known_content(old: Database) -> None:
    upgrade(old)

    assert old.query(
        "SELECT DISTINCT content_sha256, disk_bytes, accessed_at, uploaded_at FROM tiles"
    ) == [(None, None, None, None)]


def test_a_backfill_of_several_batches_fills_every_tile(old: Database) -> None:
    old.query(
        """
        INSERT INTO tiles (zoom, x, y, source, flight_id, latitude, longitude, tile_size_meters,
            tile_size_pixels, file_path, captured_at)
        SELECT 16, n, 7, 'onboard_ingest', %s, 0, 0, 1, 256, 'f', now()
        FROM generate_series(1, 20001) AS n
        """,
        FLIGHT,
    )

    upgrade(old)

    rows = old.query("SELECT x, tile_uuid, location_hash FROM tiles WHERE zoom = 16 ORDER BY x")
    assert rows == [
        (x, derive_tile_id(16, x, 7, "onboard_ingest", FLIGHT), derive_location_hash(16, x, 7))
        for x in range(1, 20002)
    ]


def test_the_old_columns_are_unchanged(old: Database) -> None:
    columns = {table: old.columns(table) for table in TABLES}
    before = {table: old.rows(table, columns[table]) for table in TABLES}

    upgrade(old)

    assert {table: old.rows(table, columns[table]) for table in TABLES} == before
    assert all(before.values())


def test_nothing_of_the_baseline_is_removed_except_the_widened_check(old: Database) -> None:
    before = old.catalog()

    upgrade(old)

    assert set(before) - set(old.catalog()) == {OLD_CHECK}


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_each_downgrade_reverts_exactly_its_upgrade(old: Database, revision: str) -> None:
    old.upgrade_to(revision)
    catalog = old.catalog()
    columns = {table: old.columns(table) for table in TABLES}
    rows = {table: old.rows(table, columns[table]) for table in TABLES}
    upgrade(old)

    downgrade(old.dsn, revision)

    assert old.catalog() == catalog
    assert {table: old.columns(table) for table in TABLES} == columns
    assert {table: old.rows(table, columns[table]) for table in TABLES} == rows
    assert old.revisions() == [revision]


def test_a_downgraded_database_can_be_upgraded_again(old: Database, written: Database) -> None:
    upgrade(old)
    downgrade(old.dsn, "0001_initial")

    upgrade(old)

    assert old.catalog() == written.catalog()


def test_the_baseline_can_be_downgraded(old: Database) -> None:
    downgrade(old.dsn, "base")

    assert old.catalog() == []
    assert old.revisions() == []


def test_a_downgrade_maps_new_labels_to_the_nearest_old_ones(old: Database) -> None:
    upgrade(old)
    labels = ["fresh", "stale_warn", "stale_reject", "downgraded", "rejected"]
    for tile_id, label in zip(count(1), labels, strict=False):
        old.query("UPDATE tiles SET freshness_status = %s WHERE id = %s", label, tile_id)

    downgrade(old.dsn, "0001_initial")

    rows = old.query("SELECT freshness_status FROM tiles ORDER BY id")
    assert [label for (label,) in rows] == [
        "fresh",
        "stale_warn",
        "stale_reject",
        "stale_warn",
        "stale_reject",
    ]


def test_duplicate_tiles_are_named_and_nothing_is_changed(old: Database) -> None:
    old.insert_old_tile(*OLD_TILES[0])
    old.insert_old_tile(*OLD_TILES[2])
    catalog, rows = old.catalog(), old.rows("tiles", old.columns("tiles"))

    with pytest.raises(MigrationError, match="share their") as refusal:
        upgrade(old)

    assert "4 rows of tiles" in str(refusal.value)
    assert "id 1, 6, 3, 7." in str(refusal.value)
    assert old.catalog() == catalog
    assert old.rows("tiles", old.columns("tiles")) == rows
    assert old.revisions() == ["0001_initial"]


def test_a_tile_with_the_no_flight_uuid_is_a_duplicate(old: Database) -> None:
    zoom, x, y, source, _, label = OLD_TILES[0]
    old.insert_old_tile(zoom, x, y, source, str(UUID(int=0)), label)

    with pytest.raises(MigrationError, match=r"2 rows of tiles share .*: id 1, 6\."):
        upgrade(old)


@pytest.mark.parametrize(
    ("zoom", "x", "y", "source"),
    [
        (3, 1, 1, "bing"),
        (23, 1, 1, "googlemaps"),
        (-1, 0, 0, "googlemaps"),
        (3, 8, 1, "googlemaps"),
        (3, 1, -1, "googlemaps"),
    ],
)
def test_a_tile_without_a_derivable_id_is_named_and_nothing_is_changed(
    old: Database, zoom: int, x: int, y: int, source: str
) -> None:
    old.insert_old_tile(zoom, x, y, source)
    catalog = old.catalog()

    with pytest.raises(MigrationError, match=r"1 rows of tiles .* no id .*: id 6\."):
        upgrade(old)

    assert old.catalog() == catalog


def test_the_query_in_a_refusal_finds_the_rows(old: Database) -> None:
    old.insert_old_tile(3, 1, 1, "bing")
    old.insert_old_tile(3, 8, 1, "googlemaps")

    with pytest.raises(MigrationError) as refusal:
        upgrade(old)

    query = str(refusal.value).partition("This finds them:")[2]
    assert old.query(query) == [(6,), (7,)]


def test_a_refused_database_upgrades_once_it_is_corrected(old: Database) -> None:
    old.insert_old_tile(3, 1, 1, "bing")
    with pytest.raises(MigrationError):
        upgrade(old)
    old.query("DELETE FROM tiles WHERE source = 'bing'")

    upgrade(old)

    assert old.revisions() == [HEAD_REVISION]


def test_two_tiles_without_a_flight_collide(empty: Database) -> None:
    upgrade(empty)
    empty.insert_tile()

    with pytest.raises(psycopg.errors.UniqueViolation, match="idx_tiles_natural_key"):
        empty.insert_tile()


def test_tiles_of_two_flights_do_not_collide(empty: Database) -> None:
    upgrade(empty)
    for flight_id in (None, uuid4(), uuid4()):
        empty.insert_tile(flight_id=flight_id)

    assert empty.query("SELECT count(*) FROM tiles") == [(3,)]


def test_a_tile_may_name_a_flight_that_was_never_recorded(empty: Database) -> None:
    upgrade(empty)

    empty.insert_tile(flight_id=uuid4())

    assert empty.query("SELECT count(*) FROM flights") == [(0,)]


def test_a_tile_uuid_is_unique(empty: Database) -> None:
    upgrade(empty)
    tile_uuid = uuid4()
    empty.insert_tile(tile_uuid=tile_uuid)

    with pytest.raises(psycopg.errors.UniqueViolation, match="uq_tiles_tile_uuid"):
        empty.insert_tile(tile_uuid=tile_uuid, x=2)


@pytest.mark.parametrize(
    ("named", "columns"),
    [
        ("ck_tiles_content_sha256", {"content_sha256": "a" * 63}),
        ("ck_tiles_disk_bytes", {"disk_bytes": -1}),
        ("ck_tiles_freshness_status", {"freshness_status": "stale"}),
        ("location_hash", {"location_hash": None}),
        ("captured_at", {"captured_at": None}),
    ],
)
def test_bad_values_are_refused(empty: Database, named: str, columns: dict[str, object]) -> None:
    upgrade(empty)

    with pytest.raises(psycopg.IntegrityError) as refused:
        empty.insert_tile(**columns)
    # Not by the message: a server may speak another language.
    assert named in (refused.value.diag.constraint_name, refused.value.diag.column_name)


@pytest.mark.parametrize("label", ["fresh", "stale_warn", "stale_reject", "downgraded", "rejected"])
def test_old_and_new_labels_are_valid(empty: Database, label: str) -> None:
    upgrade(empty)

    empty.insert_tile(freshness_status=label, content_sha256="a" * 64, disk_bytes=0)

    assert empty.query("SELECT freshness_status FROM tiles") == [(label,)]


def test_the_freshness_rules_are_seeded(empty: Database) -> None:
    upgrade(empty)

    assert empty.query("SELECT * FROM tile_freshness_rules ORDER BY classification") == [
        ("active_conflict", 6, "reject"),
        ("stable_rear", 12, "downgrade"),
    ]


def test_the_access_order_starts_with_the_access_times(old: Database) -> None:
    old.upgrade_to("0002_c6_tile_identity_and_lru")
    old.query("UPDATE tiles SET created_at = '2026-03-01 12:00+00'")
    for tile_id, accessed_at in ((1, "2026-03-03"), (2, "2026-03-01"), (4, "2026-03-02")):
        old.query("UPDATE tiles SET accessed_at = %s WHERE id = %s", accessed_at, tile_id)

    upgrade(old)

    never_accessed = [3, 5]
    assert [row for (row,) in old.query("SELECT id FROM tiles ORDER BY access_order")] == [
        *(2, *never_accessed),
        *(4, 1),
    ]


def test_a_new_tile_is_the_latest_in_the_access_order(old: Database) -> None:
    upgrade(old)

    old.insert_tile(x=3)
    old.insert_tile(x=4)

    rows = old.query("SELECT id FROM tiles ORDER BY access_order, id")
    assert [tile_id for (tile_id,) in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert old.query("SELECT x FROM tiles ORDER BY access_order DESC LIMIT 2") == [(4,), (3,)]


def test_an_empty_table_starts_the_access_order_at_1(empty: Database) -> None:
    upgrade(empty)

    empty.insert_tile()

    assert empty.query("SELECT access_order FROM tiles") == [(1,)]


def test_an_upgrade_from_the_baseline_writes_each_row_once(old: Database) -> None:
    """Revision 0002 derives the ids; the later ones rewrite nothing."""
    old.upgrade_to("0002_c6_tile_identity_and_lru")
    before = old.query("SELECT id, xmin, ctid FROM tiles ORDER BY id")

    upgrade(old)

    assert old.query("SELECT id, xmin, ctid FROM tiles ORDER BY id") == before
