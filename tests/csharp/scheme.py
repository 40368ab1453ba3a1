"""The identity scheme as a .proto carries it, and .proto files with one letter changed."""

from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from tilecache.v1 import tile_identity_pb2
from tilecache.v1.tile_identity_pb2 import TileIdentityScheme

# Not with protobuf 7: the extra `dev` has it, the extra `test` does not.
protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")

PROTOS = Path(__file__).resolve().parents[2] / "protos"
IDENTITY_PROTO = "tilecache/v1/tile_identity.proto"
GOOGLE_PROTOS = files("grpc_tools") / "_proto"

CHANGED_LETTERS = {
    "namespace": ('"5b8d0c2e-', '"5b8d0c2f-'),
    "tile template": ('"{zoom}/{x}/{y}/{source}/', '"{zoom}/{x}/{y}/{source}-'),
    "tile template's cell": ('"{zoom}/{x}/{y}/{s', '"{zoom}/{x}/{x}/{s'),
    "a placeholder": ("/{flight_id}", "/{flight_1d}"),
    "no flight": ('no_flight_uuid: "0', 'no_flight_uuid: "1'),
    "location template": ('"{zoom}/{x}/{y}"', '"{zoom}/{x}-{y}"'),
    "text of googlemaps": ('(source_text) = "googlemaps"', '(source_text) = "googlemap5"'),
    "text of onboard_ingest": (
        '(source_text) = "onboard_ingest"',
        '(source_text) = "onboard-ingest"',
    ),
}
"""What is changed: the text in the .proto, and what it becomes."""


class Scheme(NamedTuple):
    """The scheme, and the sources' texts."""

    options: TileIdentityScheme
    sources: list[str]


def write_changed_proto(folder: Path, old: str, new: str) -> Path:
    """A copy of protos/ below `folder` with one text of the scheme changed."""
    text = (PROTOS / IDENTITY_PROTO).read_text()
    assert text.count(old) == 1
    path = folder / IDENTITY_PROTO
    path.parent.mkdir(parents=True)
    path.write_text(text.replace(old, new))
    return folder


def read_scheme(protos: Path, scratch: Path) -> Scheme:
    """The scheme that a .proto carries, whatever the committed stubs say."""
    target = scratch / "descriptors.binpb"
    run_protoc(protos, f"--descriptor_set_out={target}")
    (file,) = FileDescriptorSet.FromString(target.read_bytes()).file
    return Scheme(file.options.Extensions[tile_identity_pb2.tile_identity], _source_texts(file))


def run_protoc(protos: Path, *outputs: str) -> None:
    """Has the bundled protoc read the scheme's .proto."""
    arguments = ["protoc", f"-I{protos}", f"-I{GOOGLE_PROTOS}", *outputs, IDENTITY_PROTO]
    assert protoc.main(arguments) == 0


def _source_texts(file: FileDescriptorProto) -> list[str]:
    (sources,) = (enum for enum in file.enum_type if enum.name == "TileSource")
    texts = (value.options.Extensions[tile_identity_pb2.source_text] for value in sources.value)
    return [text for text in texts if text]
