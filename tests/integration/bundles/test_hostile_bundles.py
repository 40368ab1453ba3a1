"""Bundles that are damaged or made to do harm: what is refused, and that nothing else happens."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.bundles.conftest import Cache, import_json
from tilecache_daemon.ingest.bundle import Bundle
from tilecache_daemon.ingest.bundle_format import (
    HEADER,
    IMAGES,
    MAX_LINE_BYTES,
    TILES,
    Header,
    pack_header,
)
from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import BundledTile
from tilecache_daemon.ingest.image_store import StoreError

IMAGE = b"an image"
Line = dict[str, Any]


def line(y: int, **fields: Any) -> Line:
    """A valid line."""
    valid = {
        "kind": "tile",
        "zoom": 12,
        "x": 1,
        "y": y,
        "source": "googlemaps",
        "content_sha256": sha256(IMAGE).hexdigest(),
        "disk_bytes": len(IMAGE),
        "file_path": f"12/1/{y}.png",
        "captured_at": "2025-06-01T12:00:00Z",
    }
    return valid | fields


def write_bundle(path: Path, *lines: Line | bytes) -> Path:
    """A complete bundle with the images of valid lines."""
    (path / IMAGES).mkdir(parents=True)
    texts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines]
    (path / TILES).write_bytes(b"".join(text + b"\n" for text in texts))
    (path / HEADER).write_bytes(pack_header(Header(len(lines), 0)))
    for each in lines:
        if isinstance(each, dict) and each.get("file_path"):
            image = path / IMAGES / each["file_path"].replace("\0", "")
            if image.resolve().is_relative_to((path / IMAGES).resolve()):
                image.parent.mkdir(parents=True, exist_ok=True)
                image.write_bytes(IMAGE)
    return path


HOSTILE: dict[str, tuple[Line | bytes, str]] = {
    "a path above": (line(1, file_path="../1.png"), "MISPLACED_FILE"),
    "a path above, later": (line(1, file_path="a/../../../1.png"), "MISPLACED_FILE"),
    "an absolute path": (line(1, file_path="/tmp/1.png"), "MISPLACED_FILE"),
    "an empty path": (line(1, file_path=""), "MISPLACED_FILE"),
    "no path": (line(1, file_path=None), "MISPLACED_FILE"),
    "a path with a zero": (line(1, file_path="a\0.png"), "MISPLACED_FILE"),
    "a path with a line break": (line(1, file_path="a\n.png"), "INVALID_REQUEST"),
    "half a character": (b'{"kind": "tile", "source": "googlemaps", "file_path": "\\ud800"}', ""),
    "another hash": (line(1, content_sha256="ab" * 32), "WRONG_CONTENT"),
    "no hash": (line(1, content_sha256="x"), "WRONG_CONTENT"),
    "another size": (line(1, disk_bytes=7), "WRONG_CONTENT"),
    "a huge size": (line(1, disk_bytes=10**30), ""),
    "an infinite size": (json.dumps(line(1)).replace(": 8,", ": 1e999,").encode(), ""),
    "no number": (json.dumps(line(1)).replace(": 8,", ": NaN,").encode(), ""),
    "a number of many digits": (b'{"kind": "tile", "zoom": ' + b"9" * 5000 + b"}", ""),
    "a huge zoom": (line(1, zoom=2**31), ""),
    "a zoom that is too high": (line(1, zoom=23), "INVALID_REQUEST"),
    "a column outside": (line(1, x=4096), "INVALID_REQUEST"),
    "an infinite edge": (line(1, tile_size_meters=1e308), "INVALID_REQUEST"),
    "another id": (line(1, tile_uuid="0" * 8 + "-0000-5000-8000-" + "0" * 12), "INVALID_REQUEST"),
    "another source": (line(1, source="bing"), ""),
    "a list as source": (line(1, source=["googlemaps"]), ""),
    "no time": (line(1, captured_at="yesterday"), ""),
    "a time in the future": (line(1, captured_at="9999-12-31T00:00:00Z"), "INVALID_REQUEST"),
    "deep quality": (
        b'{"kind": "tile", "source": "googlemaps", "quality_metadata": '
        + b'{"a": ' * 900
        + b"1"
        + b"}" * 901,
        "",
    ),
    "deep JSON": (b"[" * 100_000, ""),
    "no UTF-8": (b'{"kind": "tile", "file_path": "\xff"}', ""),
    "no JSON": (b"\x00\x01", ""),
    "no object": (b"[]", ""),
    "another kind": (line(1, kind="flight"), ""),
}
"""Each with the reason of its refusal; empty for MALFORMED_LINE."""


def test_hostile_lines_are_refused_and_the_others_stored(ground: Cache, tmp_path: Path) -> None:
    good = [line(2), line(3)]
    lines = [good[0], *(hostile for hostile, _ in HOSTILE.values()), good[1]]
    exit_code, report = import_json(ground, write_bundle(tmp_path / "bundle", *lines))

    assert (exit_code, report["inserted_count"]) == (1, 2)
    reasons = sorted(refusal["reason"] for refusal in report["refused"])
    assert reasons == sorted(reason or "MALFORMED_LINE" for _, reason in HOSTILE.values())
    assert ground.files() == {"12/1/2.png": IMAGE, "12/1/3.png": IMAGE}
    assert {path.name for path in ground.tiles.parent.iterdir()} == {"tiles"}


def test_links_in_a_directory_are_not_followed(ground: Cache, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "1.png").write_bytes(IMAGE)
    bundle = write_bundle(tmp_path / "bundle", line(1), line(2, file_path="link/1.png"), line(3))
    (bundle / IMAGES / "12/1/1.png").unlink()
    (bundle / IMAGES / "12/1/1.png").symlink_to(secret / "1.png")
    (bundle / IMAGES / "link/1.png").unlink()
    (bundle / IMAGES / "link").rmdir()
    (bundle / IMAGES / "link").symlink_to(secret)
    (bundle / IMAGES / "12/1/3.png").unlink()
    os.mkfifo(bundle / IMAGES / "12/1/3.png")

    exit_code, report = import_json(ground, bundle)

    assert (exit_code, report["refused_count"]) == (1, 3)
    assert ground.files() == {}


def test_a_link_in_the_tiles_directory_is_not_followed(ground: Cache, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (ground.tiles / "12").symlink_to(outside)
    exit_code, report = import_json(ground, write_bundle(tmp_path / "bundle", line(1)))

    assert (exit_code, report["refused"][0]["reason"]) == (1, "NOT_STORED")
    assert list(outside.iterdir()) == []


def no_bundle(path: Path) -> None:
    path.write_bytes(os.urandom(4096))


def header_of_another_version(path: Path) -> None:
    write_bundle(path, line(1))
    (path / HEADER).write_text('{"format": "tilecache-bundle", "format_version": 2}')


def header_with_huge_counts(path: Path) -> None:
    write_bundle(path, line(1))
    (path / HEADER).write_text(
        '{"format": "tilecache-bundle", "format_version": 1, "tile_count": 1e400}'
    )


def header_that_is_a_link(path: Path) -> None:
    write_bundle(path, line(1))
    (path / HEADER).rename(path.with_name("other"))
    (path / HEADER).symlink_to(path.with_name("other"))


def fewer_lines(path: Path) -> None:
    write_bundle(path, line(1), line(2))
    content = (path / TILES).read_bytes()
    (path / TILES).write_bytes(content[: content.index(b"\n") + 1])


def a_long_line(path: Path) -> None:
    write_bundle(path, b'{"a": "' + b"x" * MAX_LINE_BYTES + b'"}')


def in_tar(change: Callable[[tarfile.TarFile], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        bundle = write_bundle(path.with_name("source"), line(1), line(2))
        with tarfile.open(path, "w") as archive:
            archive.add(bundle, ".")
            change(archive)

    return write


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def truncated(path: Path) -> None:
    in_tar(lambda _: None)(path)
    os.truncate(path, path.stat().st_size - 10_240 - 512)


def of_negative_size(path: Path) -> None:
    in_tar(lambda _: None)(path)
    content = bytearray(path.read_bytes())
    info = member("a.png")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512 in base 256: the next header is this one
    header[148:156] = b"        "
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    path.write_bytes(bytes(header) + bytes(content))


def with_a_long_header(path: Path) -> None:
    in_tar(lambda archive: archive.addfile(member("x", pax_headers={"a": "b" * (2 << 20)})))(path)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "symbolic link.tar": (
        in_tar(
            lambda archive: archive.addfile(member("a", tarfile.SYMTYPE, linkname="/etc/passwd"))
        ),
        "a: a link",
    ),
    "hard link.tar": (
        in_tar(
            lambda archive: archive.addfile(member("a", tarfile.LNKTYPE, linkname="tiles.jsonl"))
        ),
        "a: a link",
    ),
    "device.tar": (
        in_tar(lambda archive: archive.addfile(member("a", tarfile.CHRTYPE))),
        "a: not a regular file",
    ),
    "path above.tar": (in_tar(lambda archive: archive.addfile(member("../a"))), "leads out"),
    "absolute path.tar": (in_tar(lambda archive: archive.addfile(member("/tmp/a"))), "leads out"),
    "truncated.tar": (truncated, "incomplete|truncated"),
    "negative size.tar": (of_negative_size, "truncated or damaged at a.png"),
    "long header.tar": (with_a_long_header, "a header is too long"),
    "random.tar": (no_bundle, "not a .tar"),
    "version": (header_of_another_version, "version 2 is not supported"),
    "counts": (header_with_huge_counts, "no valid counts"),
    "header": (header_that_is_a_link, "bundle.json"),
    "lines": (fewer_lines, "has 1 lines, and bundle.json says 2"),
    "line": (a_long_line, "the line is too long"),
}
"""Each with what the error says."""


@pytest.mark.parametrize("name", REFUSED)
def test_of_a_damaged_or_hostile_bundle_nothing_is_read(name: str, tmp_path: Path) -> None:
    write, why = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(SourceError, match=f"{tmp_path}.*({why})"):
        Bundle(tmp_path / name)


def test_a_refused_bundle_is_named(ground: Cache, tmp_path: Path) -> None:
    REFUSED["symbolic link.tar"][0](tmp_path / "bundle.tar")
    run = ground.run("import", tmp_path / "bundle.tar")

    assert run.returncode == 2
    assert "bundle.tar: a: a link" in run.stderr
    assert ground.files() == {}


def test_options_that_a_bundle_answers_itself_are_refused(ground: Cache, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", line(1))
    for option in (
        ("--source", "googlemaps"),
        ("--captured-at", "2026-01-01T00:00:00Z"),
        ("--into", tmp_path / "into"),
        ("--scheme", "tms"),
    ):
        run = ground.run("import", bundle, *option)
        assert run.returncode == 2
        assert option[0] in run.stderr


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=12))))
def test_no_change_of_a_tar_makes_reading_fail_otherwise(
    changes: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tar") / "bundle.tar"
    in_tar(lambda _: None)(path)
    content = bytearray(path.read_bytes())
    for position, replacement in changes:
        content[position : position + len(replacement)] = replacement
    path.write_bytes(content)
    try:
        with closing(Bundle(path)) as bundle:
            for found in bundle:
                if isinstance(found, BundledTile):
                    try:
                        assert io.BytesIO(found.read()).getbuffer().nbytes <= len(content)
                    except (OSError, StoreError):
                        continue
    except SourceError:
        return
