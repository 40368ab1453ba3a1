"""Virtual environments of the Pythons that this machine has."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wheels import run

Version = tuple[int, int]

_PROBE = "import ensurepip, sys, venv; print(*sys.version_info[:2])"
_WEIGH = """
import json
from importlib.metadata import distributions
print(json.dumps({
    found.metadata["Name"]: sum(file.locate().stat().st_size for file in found.files or ())
    for found in distributions()
}))
"""
_OF_VENV = {"pip", "setuptools"}


def find_pythons() -> dict[Version, Path]:
    """The Pythons of this machine that can make virtual environments, in order."""
    pythons: dict[Version, Path] = {}
    for path in _candidates():
        probe = subprocess.run([path, "-c", _PROBE], capture_output=True, text=True, check=False)
        if probe.returncode == 0:
            major, minor = map(int, probe.stdout.split())
            pythons.setdefault((major, minor), path)
    return dict(sorted(pythons.items()))


def _candidates() -> Iterator[Path]:
    yield Path(sys.executable)
    for minor in range(8, 30):
        if found := shutil.which(f"python3.{minor}"):
            yield Path(found)
    for found_path in Path.home().glob(".pyenv/versions/*/bin/python3.*"):
        if re.fullmatch(r"python3\.\d+", found_path.name):
            yield found_path


class Environment:
    """A virtual environment, used from outside."""

    def __init__(self, base: Path, folder: Path) -> None:
        run(base, "-m", "venv", folder)
        self.python = folder / "bin" / "python"
        self._folder = folder

    def install(self, *requirements: str | Path) -> None:
        """Has pip install and check."""
        self._pip("install", "--quiet", *requirements)
        self._pip("check")

    def install_or_skip(self, *requirements: str) -> None:
        """As `install`, from wheels alone; skips the test where a requirement has none here."""
        try:
            self.install("--only-binary=:all:", *requirements)
        except AssertionError as error:
            missing = re.search(r"No matching distribution found for .*", str(error))
            if missing is None:
                raise
            pytest.skip(f"{missing[0]}, as a wheel for {self.run('--version').strip()}")

    def versions(self) -> dict[str, str]:
        """What is installed."""
        listed = json.loads(self._pip("list", "--format=json"))
        return {entry["name"]: entry["version"] for entry in listed}

    def weights_mb(self) -> dict[str, float]:
        """What each installed distribution weighs, but those that are there from the start."""
        weights: dict[str, int] = json.loads(self.run("-c", _WEIGH))
        return {name: size / 1e6 for name, size in weights.items() if name not in _OF_VENV}

    def run(self, *arguments: str | Path) -> str:
        """What its Python prints; it reads nothing but its own packages."""
        return run(self.python, "-I", *arguments, cwd=self._folder)

    def _pip(self, *arguments: str | Path) -> str:
        return self.run("-m", "pip", "--disable-pip-version-check", *arguments)
