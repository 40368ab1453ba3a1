"""The .proto files and the C# project agree, as far as that shows without a .NET SDK."""

import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.csharp.scheme import GOOGLE_PROTOS, PROTOS
from tilecache_daemon.service.information import CONTRACT_VERSION

PROJECT = PROTOS / "csharp" / "TileCache.Client" / "TileCache.Client.csproj"


def test_protoc_generates_csharp(tmp_path: Path) -> None:
    if shutil.which("protoc") is None:
        pytest.skip("no protoc on PATH (Debian: protobuf-compiler); grpcio-tools' has no C#")
    sources = sorted((PROTOS / "tilecache").rglob("*.proto"))

    subprocess.run(
        ["protoc", f"-I{PROTOS}", f"-I{GOOGLE_PROTOS}", f"--csharp_out={tmp_path}", *sources],
        check=True,
        timeout=60,
    )

    generated = {path.stem for path in tmp_path.glob("*.cs")}
    contract = {"BlockDigest", "TileIdentity", "TileMetadataStore", "TileCacheAdmin"}
    assert generated == contract | {"ErrorDetails", "Health"}
    assert "namespace TileCache.V1 {" in (tmp_path / "TileIdentity.cs").read_text()


def test_the_project_takes_its_stubs_from_every_proto() -> None:
    folder = PROJECT.parent
    items = list(ET.parse(PROJECT).iter("Protobuf"))

    included = [path.resolve() for item in items for path in folder.glob(item.attrib["Include"])]

    assert sorted(included) == sorted(PROTOS.rglob("*.proto"))
    assert {(folder / item.attrib["ProtoRoot"]).resolve() for item in items} == {PROTOS}


def test_the_status_messages_are_none_of_the_packages_public_types() -> None:
    (status,) = (
        item for item in ET.parse(PROJECT).iter("Protobuf") if "status" in item.attrib["Include"]
    )

    assert status.attrib["Access"] == "Internal"


def test_the_package_has_the_contracts_version() -> None:
    (version,) = ET.parse(PROJECT).iter("Version")

    assert version.text == CONTRACT_VERSION
