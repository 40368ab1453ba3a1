"""The programs that several tests run."""

from pathlib import Path

import pytest

from tests.csharp.mono import CLIENT, compile_program

REPLICA = (
    *("BlockKey", "CellRectangle", "FollowedCircle", "ITileTraits", "Mercator"),
    *("ReplicaBlock", "ReplicaRequest", "ReplicaState", "ReplicaUpdate"),
)


@pytest.fixture(scope="session")
def replica_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What TileReplica is made of, and its driver, compiled."""
    sources = [CLIENT / f"{name}.cs" for name in REPLICA]
    driver = Path(__file__).with_name("ReplicaDriver.cs")
    return compile_program(tmp_path_factory.mktemp("csharp"), *sources, driver)
