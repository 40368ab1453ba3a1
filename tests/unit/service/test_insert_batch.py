"""The outcome of inserting a tile whose key is stored already."""

import pytest

from tests.tiles import sha256
from tests.unit.some_tiles import old_row
from tilecache_daemon.errors import ContentConflictError
from tilecache_daemon.models import InsertOutcome, NewTile, OnConflict, Tile
from tilecache_daemon.service.insert_batch import resolve_conflict

ALREADY_PRESENT = InsertOutcome.ALREADY_PRESENT
KEPT_EXISTING = InsertOutcome.KEPT_EXISTING
REPLACED = InsertOutcome.REPLACED
SAME, DIFFERENT = "content", "another content"
EARLIER, EQUAL, LATER = -1, 0, 1


def new_tile(content: str, captured_us: int) -> NewTile:
    row = old_row()
    return NewTile(*row[:12], sha256(content), 1, captured_us, None)


def stored_tile() -> Tile:
    return old_row()._replace(content_sha256=sha256(SAME), captured_us=EQUAL)


@pytest.mark.parametrize(
    ("content", "captured_us", "fail", "keep_existing", "replace_if_newer"),
    [
        (SAME, EARLIER, ALREADY_PRESENT, ALREADY_PRESENT, ALREADY_PRESENT),
        (SAME, EQUAL, ALREADY_PRESENT, ALREADY_PRESENT, ALREADY_PRESENT),
        (SAME, LATER, ALREADY_PRESENT, ALREADY_PRESENT, REPLACED),
        (DIFFERENT, EARLIER, ContentConflictError, KEPT_EXISTING, KEPT_EXISTING),
        (DIFFERENT, EQUAL, ContentConflictError, KEPT_EXISTING, KEPT_EXISTING),
        (DIFFERENT, LATER, ContentConflictError, KEPT_EXISTING, REPLACED),
    ],
)
def test_conflicts_are_resolved_by_content_capture_and_on_conflict(
    content: str, captured_us: int, fail: object, keep_existing: object, replace_if_newer: object
) -> None:
    new, stored = new_tile(content, captured_us), stored_tile()

    failing = resolve_conflict(new, stored, OnConflict.FAIL)
    assert failing is fail or type(failing) is fail
    assert resolve_conflict(new, stored, OnConflict.KEEP_EXISTING) is keep_existing
    assert resolve_conflict(new, stored, OnConflict.REPLACE_IF_NEWER) is replace_if_newer


def test_a_conflict_reports_the_stored_content() -> None:
    new, stored = new_tile(DIFFERENT, LATER), stored_tile()

    error = resolve_conflict(new, stored, OnConflict.FAIL)

    assert isinstance(error, ContentConflictError)
    assert error.facts == {
        "tile_uuid": new.tile_uuid,
        "stored_content_sha256": sha256(SAME),
        "stored_captured_at": "2000-01-01T00:00:00+00:00",
    }
