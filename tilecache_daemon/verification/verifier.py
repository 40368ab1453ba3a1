"""Verification of all rows and all files below a root."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

from tilecache.client import TileCacheClient
from tilecache.v1.tile_metadata_store_pb2 import ListTilesRequest
from tilecache_daemon.ingest.tile_directory import is_skipped
from tilecache_daemon.verification.checks import (
    CALL_TIMEOUT_S,
    MAX_PATHS,
    FileChecker,
    Finding,
    Problem,
)
from tilecache_daemon.verification.progress_log import ProgressLog
from tilecache_daemon.verification.tree import in_chunks, walk


class Verifier:
    """Verifies a root in two passes, each in steps that the log records: for each row that its
    file is there, then for each file its size, its content and that it belongs to a tile."""

    def __init__(
        self,
        client: TileCacheClient,
        root: Path,
        checker: FileChecker,
        log: ProgressLog,
        on_finding: Callable[[Finding], None],
    ) -> None:
        """`root` must be free of symbolic links."""
        self.absent_count = 0
        """Rows whose file cannot be found, or not be read."""
        self._client = client
        self._root = str(root)
        self._checker = checker
        checker.aliases = log.aliases
        self._log = log
        self._on_finding = on_finding
        self._is_walked = lru_cache(maxsize=10_000)(self._is_walked_uncached)

    def repeat(self) -> None:
        """Checks again what was found before this verification was stopped. Raises CallError."""
        for paths in chunked(self._log.paths(), MAX_PATHS):
            self._check(paths)

    def check_rows(self, on_progress: Callable[[int], None]) -> None:
        """The first pass, from the log's position on. Raises CallError and ProgressLogError."""
        while not self._log.position.rows_done:
            request = ListTilesRequest(page_token=self._log.position.page_token)
            answer = self._client.store.ListTiles(request, timeout=CALL_TIMEOUT_S)
            paths = sorted({tile.file_path for tile in answer.tiles})
            unwalked = [path for path in paths if not self._is_there(path)]
            aliases = [alias for path in unwalked if (alias := self._find_alias(path))]
            found = self._check(unwalked)
            position = self._log.position._replace(
                rows_done=not answer.next_page_token,
                page_token=answer.next_page_token,
                row_count=self._log.position.row_count + len(answer.tiles),
            )
            self._log.record(position, found, aliases)
            on_progress(len(answer.tiles))

    def check_files(self, on_progress: Callable[[int], None]) -> None:
        """The second pass, as `check_rows`."""
        files = walk(self._root, self._log.position.last_path)
        for paths, last_path in in_chunks(files, MAX_PATHS):
            found = self._check(paths)
            position = self._log.position._replace(
                last_path=last_path, file_count=self._log.position.file_count + len(paths)
            )
            self._log.record(position, found)
            on_progress(len(paths))

    def _check(self, paths: Sequence[str]) -> list[str]:
        """Reports what is wrong with some files; returns the paths of these."""
        findings = self._checker.find(paths) if paths else []
        for finding in findings:
            if finding.tile and finding.problem in (Problem.MISSING, Problem.UNREADABLE):
                self.absent_count += 1
            self._on_finding(finding)
        return list(dict.fromkeys(finding.file_path for finding in findings))

    def _is_there(self, path: str) -> bool:
        """Whether there is a file at a path, which the second pass will come to."""
        directory, _, name = path.rpartition("/")
        if is_skipped(name) or not self._is_walked(directory):
            return False
        try:
            return stat.S_ISREG(os.lstat(f"{self._root}/{path}").st_mode)
        except (OSError, ValueError):
            return False

    def _find_alias(self, path: str) -> str | None:
        """The path at which the second pass comes to a file that has another one in its row."""
        real_path = os.path.realpath(f"{self._root}/{path}")
        alias = real_path.removeprefix(f"{self._root}/")
        return alias if alias not in (path, real_path) else None

    def _is_walked_uncached(self, directory: str) -> bool:
        """Whether the second pass comes to a directory: no link leads to it, nor out of the
        root."""
        parts = directory.split("/") if directory else []
        if any(part == "" or is_skipped(part) for part in parts):
            return False
        full_path = "/".join((self._root, *parts))
        return os.path.realpath(full_path) == full_path


def chunked(paths: Iterable[str], size: int) -> Iterator[list[str]]:
    """The paths, each once in a chunk of `size` at most."""
    rest = iter(paths)
    while chunk := list(islice(rest, size)):
        yield list(dict.fromkeys(chunk))
