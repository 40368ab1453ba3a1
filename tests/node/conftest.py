"""The npm packages that these tests use."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INSTALLED = HERE.parents[1] / "build" / "node"
INSTALL_TIMEOUT_S = 300
NETWORK_TROUBLE = (
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
    "ENETUNREACH",
)


@pytest.fixture(scope="session")
def packages() -> Path:
    """The folder where the packages of the lock file lie, and the peer beside them."""
    if missing := [tool for tool in ("node", "npm") if shutil.which(tool) is None]:
        pytest.skip(f"no {' and no '.join(missing)} on PATH (Node.js 18 or later)")
    INSTALLED.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", ".npmrc", "peer.mjs", "replica_state.mjs"):
        shutil.copy(HERE / name, INSTALLED / name)
    lock = INSTALLED / "package-lock.json"
    wanted = (HERE / lock.name).read_bytes()
    if not (lock.exists() and lock.read_bytes() == wanted):
        lock.write_bytes(wanted)
        _install(lock)
    return INSTALLED


def _install(lock: Path) -> None:
    """Installs what the lock file names; takes the lock file away again if that fails."""
    install = subprocess.run(
        ["npm", "ci"],
        cwd=lock.parent,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
    if install.returncode == 0:
        return
    lock.unlink()
    if any(trouble in install.stderr for trouble in NETWORK_TROUBLE):
        pytest.skip(f"npm cannot reach its registry: {install.stderr}")
    pytest.fail(install.stderr)
