"""Validation of requests, and their conversion to models.

Each function raises InvalidRequestError with the invalid fields that it finds.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tilecache.errors import FieldViolation
from tilecache.identity import (
    MAX_ZOOM,
    NO_FLIGHT_UUID,
    SOURCE_TEXTS,
    flight_text,
    tile_uuid_text,
)
from tilecache.mercator import BLOCK_BITS
from tilecache.v1.tile_cache_admin_pb2 import DeleteTilesRequest
from tilecache.v1.tile_identity_pb2 import TileKey as TileKeyMessage
from tilecache.v1.tile_metadata_store_pb2 import (
    DescribeBlocksRequest,
    DescribeCoverageRequest,
    ListPendingUploadsRequest,
    ListTilesRequest,
    QueryTilesRequest,
    TileRef,
)
from tilecache.v1.tile_metadata_store_pb2 import (
    FreshnessLabel as FreshnessLabelMessage,
)
from tilecache_daemon.errors import InvalidRequestError, LimitExceededError
from tilecache_daemon.models import (
    DEFAULT_LIMITS,
    FIRST_MICROS,
    LAST_MICROS,
    UNIX_SECONDS_AT_2000,
    USABLE_LABELS,
    FreshnessLabel,
    ListFilter,
    OnConflict,
    TileFilter,
    TileKey,
    TileSelection,
    moment_of,
)

_HEX: Final = "[0-9a-f]"
UUID_TEXT: Final = re.compile("-".join(f"{_HEX}{{{digits}}}" for digits in (8, 4, 4, 4, 12)))
_FILES_AND_PAGE: Final = ("file_paths", "page_size", "page_token")
_ROW_ID: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)
MAX_PAGE_SIZE: Final = DEFAULT_LIMITS.max_page_size
SHA256: Final = re.compile(r"[0-9a-f]{64}")
SHA256_EXPECTED: Final = "must be 64 lower-case hexadecimal digits"
_LABELS: Final[dict[int, str]] = {
    FreshnessLabelMessage.Value(f"FRESHNESS_LABEL_{label.name}"): label.value
    for label in FreshnessLabel
}
_ON_CONFLICT: Final[dict[int, OnConflict]] = dict(enumerate((OnConflict.FAIL, *OnConflict)))
_SELECTION: Final[dict[int, TileSelection]] = dict(enumerate((TileSelection.ALL, *TileSelection)))

Choice = TypeVar("Choice")


def invalid(field: str, description: str) -> InvalidRequestError:
    """The error for one invalid field."""
    return InvalidRequestError(FieldViolation(field, description))


def check_count(field: str, count: int, most: int) -> None:
    """Raises LimitExceededError for more than `most` items, and InvalidRequestError for
    none."""
    if count > most:
        raise LimitExceededError(
            FieldViolation(field, f"has {count} items, must have at most {most}")
        )
    if count == 0:
        raise invalid(field, "must not be empty")


def tile_key(message: TileKeyMessage) -> TileKey:
    """A valid key, with its source and flight in canonical text."""
    zoom, x, y = message.zoom, message.x, message.y
    source = SOURCE_TEXTS.get(message.source)
    if (
        source
        and 0 <= zoom <= MAX_ZOOM
        and 0 <= x < 1 << zoom
        and 0 <= y < 1 << zoom
        and not message.HasField("flight_id")
    ):
        return TileKey(zoom, x, y, source, None)
    return _checked_key(message, source)


def _checked_key(message: TileKeyMessage, source: str | None) -> TileKey:
    """As `tile_key`, for keys that are invalid or have a flight."""
    violations = []
    zoom, x, y = message.zoom, message.x, message.y
    if not 0 <= zoom <= MAX_ZOOM:
        violations.append(FieldViolation("zoom", f"is {zoom}, must be within 0..{MAX_ZOOM}"))
    else:
        last = (1 << zoom) - 1
        for name, value in (("x", x), ("y", y)):
            if not 0 <= value <= last:
                violations.append(
                    FieldViolation(name, f"is {value}, must be within 0..{last} at zoom {zoom}")
                )
    if source is None:
        violations.append(FieldViolation("source", f"is {message.source}, must be a known source"))
    flight_id = message.flight_id if message.HasField("flight_id") else None
    if flight_id is not None and not UUID_TEXT.fullmatch(flight_id):
        violations.append(FieldViolation("flight_id", not_uuid(flight_id)))
    if violations or source is None:
        raise InvalidRequestError(*violations)
    return TileKey(zoom, x, y, source, flight_text(flight_id))


def key_uuid(key: TileKey) -> str:
    """The `tile_uuid` of a key."""
    return tile_uuid_text(*key)


def uuid_text(field: str, text: str) -> str:
    """A UUID in canonical text."""
    if not UUID_TEXT.fullmatch(text):
        raise invalid(field, not_uuid(text))
    return text


def sha256_text(field: str, text: str) -> str:
    """A SHA-256 in canonical text."""
    if not SHA256.fullmatch(text):
        raise invalid(field, SHA256_EXPECTED)
    return text


def tile_ref(field: str, ref: TileRef) -> str:
    """The id of the tile that a reference names."""
    if UUID_TEXT.fullmatch(ref.tile_uuid):
        return ref.tile_uuid
    match ref.WhichOneof("ref"):
        case "tile_uuid":
            return uuid_text(f"{field}.tile_uuid", ref.tile_uuid)
        case "key":
            try:
                return key_uuid(tile_key(ref.key))
            except InvalidRequestError as error:
                raise error.within(f"{field}.key") from None
    raise invalid(field, "is required: set tile_uuid or key")


def tile_refs(refs: Sequence[TileRef], most: int) -> list[str]:
    """The ids that the references of a request's field `tiles` name, `most` of them at most."""
    check_count("tiles", len(refs), most)
    tile_uuids = [ref.tile_uuid for ref in refs]
    if all(map(UUID_TEXT.fullmatch, tile_uuids)):
        return tile_uuids
    return [tile_ref(f"tiles[{index}]", ref) for index, ref in enumerate(refs)]


def micros(field: str, message: Timestamp) -> int:
    """A time in microseconds since 2000."""
    nanos = message.nanos
    if not 0 <= nanos < 1_000_000_000:
        raise invalid(field, f"has {nanos} nanos, must be within 0..999999999")
    after_2000 = (message.seconds - UNIX_SECONDS_AT_2000) * 1_000_000 + nanos // 1_000
    if not FIRST_MICROS <= after_2000 <= LAST_MICROS:
        raise invalid(field, "must be within the years 1 to 9999")
    return after_2000


def moment(field: str, message: Timestamp) -> datetime:
    """A time, truncated to microseconds."""
    return moment_of(micros(field, message))


def positive_duration(field: str, message: Duration, most: timedelta) -> timedelta:
    """A duration of more than 0, and not more than `most`, truncated to microseconds."""
    try:
        duration = message.ToTimedelta()
    except (ValueError, OverflowError):
        raise invalid(field, "is not a duration") from None
    if not timedelta(0) < duration <= most:
        raise invalid(field, f"is {duration}, must be more than 0 and at most {most.days} days")
    return duration


def on_conflict(number: int) -> OnConflict:
    """How to resolve conflicts."""
    return choice("on_conflict", _ON_CONFLICT, number)


def zoom(number: int) -> int:
    """A valid zoom."""
    if not 0 <= number <= MAX_ZOOM:
        raise invalid("zoom", f"is {number}, must be within 0..{MAX_ZOOM}")
    return number


def each_zoom(numbers: Sequence[int]) -> list[int]:
    """Valid zooms of a request's field `zooms`, in order, each once."""
    for index, number in enumerate(numbers):
        if not 0 <= number <= MAX_ZOOM:
            raise invalid(f"zooms[{index}]", f"is {number}, must be within 0..{MAX_ZOOM}")
    return sorted(set(numbers))


def zooms(request: DescribeCoverageRequest) -> list[int]:
    """The zooms of a request that has one or several."""
    if request.zooms and request.zoom:
        raise invalid("zoom", "must not be combined with zooms")
    return each_zoom(request.zooms) or [zoom(request.zoom)]


def tile_filter(request: QueryTilesRequest) -> TileFilter:
    """The filter of a query."""
    if request.limit < 0:
        raise invalid("limit", f"is {request.limit}, must be at least 0")
    labels = frozenset(each("labels", _LABELS, request.labels))
    captured_after = None
    if request.HasField("captured_after"):
        captured_after = moment("captured_after", request.captured_after)
    return TileFilter(
        sources=frozenset(each("sources", SOURCE_TEXTS, request.sources)),
        flight_id=optional_flight(request),
        captured_after=captured_after,
        labels=labels or USABLE_LABELS,
        selection=choice("selection", _SELECTION, request.selection),
        limit=request.limit,
    )


def block_positions(zoom: int, request: DescribeBlocksRequest, most: int) -> list[tuple[int, int]]:
    """The blocks that a request names."""
    if request.HasField("region"):
        raise invalid("region", "must be absent if blocks are given")
    check_count("blocks", len(request.blocks), most)
    last = ((1 << zoom) - 1) >> BLOCK_BITS
    for index, block in enumerate(request.blocks):
        for name, value in (("block_x", block.block_x), ("block_y", block.block_y)):
            if not 0 <= value <= last:
                raise invalid(
                    f"blocks[{index}].{name}",
                    f"is {value}, must be within 0..{last} at zoom {zoom}",
                )
    return [(block.block_x, block.block_y) for block in request.blocks]


def list_filter(request: ListTilesRequest) -> ListFilter:
    """The filter of a list without a region."""
    captured_after = captured_before = None
    if request.HasField("captured_after"):
        captured_after = moment("captured_after", request.captured_after)
    if request.HasField("captured_before"):
        captured_before = moment("captured_before", request.captured_before)
    return ListFilter(
        zooms=each_zoom(request.zooms) or None,
        sources=list(each("sources", SOURCE_TEXTS, request.sources)) or None,
        flight_id=optional_flight(request),
        captured_after=captured_after,
        captured_before=captured_before,
        labels=list(each("labels", _LABELS, request.labels)) or None,
        pending_upload=request.pending_upload,
    )


def listed_files(request: ListTilesRequest, most: int) -> list[str]:
    """The files of a list, at most `most`. Raises InvalidRequestError for other filters."""
    others = [f.name for f, _ in request.ListFields() if f.name not in _FILES_AND_PAGE]
    if others:
        raise invalid(others[0], "must not be combined with file_paths")
    return file_paths(request.file_paths, most)


def file_paths(paths: Sequence[str], most: int) -> list[str]:
    """The files of a request's field `file_paths`, at most `most`."""
    check_count("file_paths", len(paths), most)
    for index, path in enumerate(paths):
        if "\0" in path:
            raise invalid(f"file_paths[{index}]", "must not contain a zero byte")
    return list(paths)


def after_row(page_token: str) -> int:
    """The last row id of the previous page; the least number for the first page."""
    if not page_token:
        return -(1 << 63)
    if not _ROW_ID.fullmatch(page_token) or abs(int(page_token)) >= 1 << 63:
        raise invalid("page_token", "must be a token of a previous page")
    return int(page_token)


def after_flight(page_token: str) -> str:
    """The last flight of the previous page; the UUID that stands for none for the first page."""
    if not page_token:
        return str(NO_FLIGHT_UUID)
    if not UUID_TEXT.fullmatch(page_token):
        raise invalid("page_token", "must be a token of a previous page")
    return page_token


def page_size(number: int) -> int:
    """The size of a page: the given number, or MAX_PAGE_SIZE for 0 and for more than that."""
    if number < 0:
        raise invalid("page_size", f"is {number}, must be at least 0")
    return min(number or MAX_PAGE_SIZE, MAX_PAGE_SIZE)


def optional_flight(
    request: QueryTilesRequest | ListPendingUploadsRequest | ListTilesRequest | DeleteTilesRequest,
) -> str | None:
    """The flight of a filter; None for any."""
    if not request.HasField("flight_id"):
        return None
    return uuid_text("flight_id", request.flight_id)


def choice(field: str, choices: Mapping[int, Choice], number: int) -> Choice:
    """The value of an enum's number; raises InvalidRequestError for an unknown number."""
    if number not in choices:
        raise invalid(field, f"is {number}, must be one of {', '.join(map(str, choices))}")
    return choices[number]


def each(field: str, choices: Mapping[int, Choice], numbers: Iterable[int]) -> Iterator[Choice]:
    """The values of an enum's numbers, as `choice`."""
    for index, number in enumerate(numbers):
        yield choice(f"{field}[{index}]", choices, number)


def not_uuid(text: str) -> str:
    """What is wrong with a text that is no UUID."""
    return f"is {text[:50]!r}, must be a UUID in canonical lower-case text"
