"""The progress of a verification on disk."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tilecache_daemon.verification.progress_log import Position, ProgressLog, ProgressLogError

SUBJECT = {"root": "/tiles", "with_content": False}
FIRST = Position(page_token="7", row_count=10)
SECOND = Position(rows_done=True, last_path="1/\udce9.png", row_count=20, file_count=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "log.jsonl"


@contextmanager
def opened(
    path: Path, subject: dict[str, object] = SUBJECT, *, restart: bool = False
) -> Iterator[ProgressLog]:
    log = ProgressLog.open(path, subject, restart=restart)
    try:
        yield log
    finally:
        log.close(done=False)


@pytest.fixture
def recorded(path: Path) -> bytes:
    with opened(path) as log:
        assert not log.is_continued
        log.record(FIRST, ["a.png"], ["real/b.png"])
        log.record(SECOND, ["\udce9.png", "c.png"])
    return path.read_bytes()


def test_a_log_continues_with_what_was_recorded(recorded: bytes, path: Path) -> None:
    with opened(path) as log:
        assert log.is_continued
        assert log.position == SECOND
        assert log.aliases == {"real/b.png"}
        assert list(log.paths()) == ["a.png", "\udce9.png", "c.png"]


def test_a_step_that_was_not_written_to_its_end_is_forgotten(recorded: bytes, path: Path) -> None:
    end_of_first = recorded.index(b"\n", recorded.index(b'"page_token": "7"')) + 1
    for size in range(end_of_first, len(recorded)):
        path.write_bytes(recorded[:size])
        with opened(path) as log:
            assert log.position == FIRST
            assert list(log.paths()) == ["a.png"]
            log.record(SECOND, ["d.png"])
        with opened(path) as log:
            assert log.position == SECOND
            assert list(log.paths()) == ["a.png", "d.png"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]\n", b"\0\0\0", b"\xff\xfe\n", b'{"at": 1}\n', b'{"format": 9}\n']
)
def test_what_is_no_log_begins_anew(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with opened(path) as log:
        assert (log.is_continued, log.position, list(log.paths())) == (False, Position(), [])
        log.record(FIRST, [])
    with opened(path) as log:
        assert log.is_continued


def test_another_subject_or_a_restart_begins_anew(recorded: bytes, path: Path) -> None:
    for subject, restart in ((SUBJECT | {"with_content": True}, False), (SUBJECT, True)):
        path.write_bytes(recorded)
        with opened(path, subject, restart=restart) as log:
            assert (log.is_continued, list(log.paths())) == (False, [])


def test_one_process_at_a_time_uses_a_log(path: Path) -> None:
    with opened(path), pytest.raises(ProgressLogError, match="another process"), opened(path):
        pass


@pytest.mark.parametrize("rest", [b"\xff\xff\n", b"7\n", b'{"path": ', b"\0" * 100, b'{"x": 1}\n'])
def test_what_a_power_failure_left_is_cut_off(recorded: bytes, path: Path, rest: bytes) -> None:
    path.write_bytes(recorded + rest)
    with opened(path) as log:
        assert log.position == SECOND
    assert path.read_bytes() == recorded


def test_a_step_that_does_not_fit_on_the_disk_is_an_error_and_is_forgotten(
    recorded: bytes, path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(path) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(recorded) + 20, limits[1]))
        try:
            with pytest.raises(ProgressLogError, match="File too large"):
                log.record(SECOND._replace(row_count=30), ["e.png"])
            log.close(done=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with opened(path) as log:
        assert log.position == SECOND


def test_a_log_that_is_done_is_removed(recorded: bytes, path: Path) -> None:
    ProgressLog.open(path, SUBJECT, restart=False).close(done=True)
    assert not path.exists()
