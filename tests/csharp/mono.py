"""Compiles and runs C# 7 with Mono."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.csharp.scheme import PROTOS

CLIENT = PROTOS / "csharp" / "TileCache.Client"
TIMEOUT_S = 60


def compile_program(folder: Path, *sources: Path) -> Path:
    """A program of these sources. Skips the test where there is no Mono."""
    if missing := [tool for tool in ("mcs", "mono") if shutil.which(tool) is None]:
        pytest.skip(f"no {' and no '.join(missing)} on PATH (Debian: mono-mcs, mono-runtime)")
    program = folder / "driver.exe"
    subprocess.run(
        ["mcs", "-langversion:7", "-warnaserror+", f"-out:{program}", *sources],
        check=True,
        timeout=TIMEOUT_S,
    )
    return program


def run_program(
    program: Path, *arguments: str, lines: list[str]
) -> "subprocess.CompletedProcess[str]":
    """Runs it with these lines of input."""
    return subprocess.run(
        ["mono", program, *arguments],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
