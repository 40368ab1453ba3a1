"""Writes the Python stubs of protos/tilecache into protos/python.

python protos/generate.py            write them
python protos/generate.py --check    exit 1 if they are not what the .proto gives
"""

import filecmp
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
STUBS = PROTOS / "python"


def generate(target: Path) -> None:
    """Writes all stubs below `target`; raises RuntimeError when protoc refuses."""
    sources = sorted(str(path) for path in (PROTOS / "tilecache").rglob("*.proto"))
    arguments = [
        "protoc",
        f"-I{PROTOS}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).parent / 'protoc-gen-mypy_grpc'}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
    ]
    if protoc.main([*arguments, *sources]) != 0:
        raise RuntimeError("protoc refused the .proto files")
    package = target / "tilecache"
    for folder in (package, package / "v1"):
        (folder / "__init__.py").write_text('"""Generated from protos/tilecache."""\n')
    (package / "py.typed").touch()


def stub_names(folder: Path) -> set[Path]:
    return {
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        if "--check" not in sys.argv:
            shutil.rmtree(STUBS, ignore_errors=True)
            shutil.copytree(fresh, STUBS)
            STUBS.chmod(0o755)  # not the mode of a scratch directory
            return 0
        names = stub_names(fresh) | stub_names(STUBS)
        _, differing, missing = filecmp.cmpfiles(
            fresh, STUBS, [str(name) for name in names], shallow=False
        )
        for name in sorted(differing + missing):
            sys.stderr.write(f"protos/python/{name} is not what the .proto gives: `make stubs`\n")
        return 1 if differing or missing else 0


if __name__ == "__main__":
    sys.exit(main())
