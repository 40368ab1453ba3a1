"""Packs files that lie outside this folder: the contract and the licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class OutsideFiles(BuildHookInterface):
    """Runs for source distributions and for wheels, which may be built from either."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        included: dict[str, str] = build_data["force_include"]
        # A source distribution would take the link to the licence as it is.
        for path in list(included):
            included[str(Path(path).resolve())] = included.pop(path)
        contract = Path(self.root).parent / "tilecache"
        # Where a wheel is built from a source distribution, the package has the files already.
        if contract.is_dir():
            included[str(contract)] = "tilecache"
