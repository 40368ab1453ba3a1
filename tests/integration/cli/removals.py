"""What the tests of `evict`, `evictions` and `delete` share."""

import json
import subprocess
from typing import Any

from tests.admin import list_evictions
from tilecache.client import TileCacheClient


def split_json_lines(ended: "subprocess.CompletedProcess[str]") -> tuple[list[Any], Any]:
    """The tiles and the summary of the output of `--json`."""
    *tiles, summary = map(json.loads, ended.stdout.splitlines())
    return [line["tile"] for line in tiles], summary["summary"]


def listed_paths(admin: TileCacheClient) -> list[str]:
    """The files on the list of evictions."""
    return [tile.file_path for tile in list_evictions(admin)]
