"""The wheels of the client and of the daemon, built from this checkout."""

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
CLIENT = CHECKOUT / "protos" / "python"


def build_client(target: Path) -> Path:
    """The client's wheel, in a folder that has none yet."""
    return _build(CLIENT, target, "tilecache_client")


def build_daemon(target: Path) -> Path:
    """The daemon's wheel, in a folder that has none yet."""
    return _build(CHECKOUT, target, "tilecache_daemon")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command prints. It must succeed."""
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def _build(project: Path, target: Path, name: str) -> Path:
    run(sys.executable, "-m", "build", "--wheel", "--outdir", target, project)
    (wheel,) = target.glob(f"{name}-*.whl")
    return wheel
