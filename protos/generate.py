"""Writes the Python stubs of protos/tilecache into the client's package.

python protos/generate.py            write them
python protos/generate.py --check    exit 1 if they do not match the .proto files

The stubs are written by an older protoc, in a virtual environment of its own (`make stubs`
makes it): what a newer one writes runs with the newest protobuf and grpcio only. They are
checked with the protoc of this environment, by what they describe and not byte by byte.
"""

import ast
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto

PROTOS = Path(__file__).resolve().parent
PACKAGE = PROTOS / "python" / "tilecache"
GENERATED = (PACKAGE / "v1", PACKAGE / "status")
"""The folders that hold nothing but stubs."""
OLD_PYTHON = PROTOS.parent / "build" / "protoc-venv" / "bin" / "python"
DOCSTRING = '"""Generated from protos/tilecache."""\n'


def main() -> int:
    """Writes or checks the stubs; gives the exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        if "--check" in sys.argv:
            generate(Path(sys.executable), fresh)
            differing = sorted(find_differing(fresh))
            for name in differing:
                sys.stderr.write(f"{name} does not match the .proto files: run `make stubs`\n")
            return 1 if differing else 0
        generate(OLD_PYTHON, fresh)
        for folder in GENERATED:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(fresh / folder.relative_to(PACKAGE.parent), folder)
    return 0


def generate(python: Path, target: Path) -> None:
    """Writes all stubs below `target` with the protoc of a Python environment.

    Raises CalledProcessError when protoc refuses the .proto files.
    """
    plugins = Path(sys.executable).parent
    arguments = [
        f"-I{PROTOS}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
    ]
    sources = sorted((PROTOS / "tilecache").rglob("*.proto"))
    subprocess.run(  # noqa: S603
        [python, "-m", "grpc_tools.protoc", *arguments, *sources], check=True
    )
    for folder in (target / "tilecache").rglob("*"):
        if folder.is_dir():
            (folder / "__init__.py").write_text(DOCSTRING)


def find_differing(fresh: Path) -> Iterator[Path]:
    """The committed stubs, relative to protos/python, that differ from fresh ones."""
    root = PACKAGE.parent
    committed = {
        path.relative_to(root)
        for folder in GENERATED
        for path in folder.rglob("*.py*")
        if path.suffix in {".py", ".pyi"}
    }
    expected = {path.relative_to(fresh) for path in fresh.rglob("*.py*")}
    yield from committed ^ expected
    for name in committed & expected:
        if describe(root / name) != describe(fresh / name):
            yield name


def describe(stub: Path) -> object:
    """What a stub says, whichever protoc wrote it."""
    text = stub.read_text()
    if stub.name.endswith("_pb2.py"):
        (serialized,) = re.findall(r"AddSerializedFile\((b'.*')\)$", text, re.MULTILINE)
        return FileDescriptorProto.FromString(ast.literal_eval(serialized))
    if stub.name.endswith("_pb2_grpc.py"):
        # Method paths, message classes, and which sides stream.
        return re.findall(r"'/tilecache\S+'|\w+_pb2\.\S+\b|\b(?:unary|stream)_\w+", text)
    return text


if __name__ == "__main__":
    sys.exit(main())
