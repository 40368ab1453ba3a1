"""The Python side of a changed scheme: the daemon's proof fails, as the C# one does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.csharp.scheme import CHANGED_LETTERS, PROTOS, run_protoc, write_changed_proto

PROVE = "from tilecache.identity import prove_identity; prove_identity()"


@pytest.mark.parametrize("change", CHANGED_LETTERS.values(), ids=CHANGED_LETTERS)
def test_one_changed_letter_is_caught(tmp_path: Path, change: tuple[str, str]) -> None:
    protos = write_changed_proto(tmp_path / "protos", *change)
    stubs = write_stubs(protos, tmp_path / "stubs")

    proof = prove(stubs)

    assert proof.returncode != 0
    assert "IdentityProofError" in proof.stderr


def test_the_scheme_as_it_stands_is_proved(tmp_path: Path) -> None:
    protos = write_changed_proto(tmp_path / "protos", "5b8d0c2e", "5b8d0c2e")
    stubs = write_stubs(protos, tmp_path / "stubs")

    proof = prove(stubs)

    assert proof.returncode == 0, proof.stderr


def write_stubs(protos: Path, stubs: Path) -> Path:
    """A copy of the client whose stub of the scheme is that of `protos`."""
    shutil.copytree(PROTOS / "python" / "tilecache", stubs / "tilecache")
    run_protoc(protos, f"--python_out={stubs}")
    return stubs


def prove(stubs: Path) -> "subprocess.CompletedProcess[str]":
    """Has a Python that finds these stubs first prove its identity."""
    return subprocess.run(
        [sys.executable, "-c", PROVE],
        env=os.environ | {"PYTHONPATH": str(stubs)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
