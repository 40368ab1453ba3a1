"""A real systemd as the first process of a machine made of namespaces.

It needs root, a cgroup v2 tree to write to and systemd's programs, and nothing
to be installed. What happens in it is gone with it.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.waiting import eventually

BOOT = Path(__file__).with_name("boot.sh")
SYSTEMD = Path("/usr/lib/systemd/systemd")
NAMESPACES = ("--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
COMMAND_TIMEOUT_S = 300


def find_obstacle() -> str | None:
    """The reason why such a machine cannot run here; None if it can."""
    if os.geteuid() != 0:
        return "it takes root to make a machine of namespaces"
    if not SYSTEMD.exists():
        return f"there is no systemd here ({SYSTEMD})"
    for program in ("unshare", "nsenter", "setpriv", "pivot_root"):
        if shutil.which(program, path=PATH) is None:
            return f"there is no {program} here"
    if (tree := _cgroup_tree()) is None:
        return "there is no cgroup v2 tree here"
    if not os.access(tree, os.W_OK) or os.statvfs(tree).f_flag & os.ST_RDONLY:
        return f"the cgroup v2 tree {tree} cannot be written to"
    trial = subprocess.run(
        ["unshare", *NAMESPACES, "--fork", "mount", "-t", "tmpfs", "trial", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"namespaces are not allowed here: {trial.stderr.strip()}" if trial.returncode else None


class Machine:
    """Started and stopped by `with`; commands run in it as root."""

    def __init__(self, directories: Mapping[Path, str]) -> None:
        """`directories` of the host are mounted in the machine at the given paths."""
        self._directories = directories
        self._cgroup = (_cgroup_tree() or Path()) / f"tilecache-test-{os.getpid()}-{id(self)}"
        self._init_pid = 0

    def __enter__(self) -> "Machine":
        self._cgroup.mkdir()
        enter = f"echo $$ >{self._cgroup}/cgroup.procs"
        become = (
            "exec setpriv --pdeathsig=KILL"
            f" unshare {' '.join(NAMESPACES)} --fork --propagation=private --kill-child=KILL"
        )
        pairs = [str(path) for pair in self._directories.items() for path in pair]
        self._boot = subprocess.Popen(
            ["sh", "-euc", f'{enter}; {become} sh "$@"', "sh", BOOT, *pairs],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._init_pid = eventually(self._find_init)
            eventually(self._is_running)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._init_pid:
            os.kill(self._init_pid, signal.SIGKILL)  # The kernel ends all others with it.
        else:
            self._boot.kill()
        self._boot.wait()
        eventually(lambda: "populated 0" in (self._cgroup / "cgroup.events").read_text())
        for directory, _, _ in os.walk(self._cgroup, topdown=False):
            Path(directory).rmdir()

    def path(self, inside: str) -> Path:
        """The host's path of a file in the machine."""
        return Path(f"/proc/{self._init_pid}/root{inside}")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """Writes a file in the machine, and creates its directory."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def run(self, *command: str) -> str:
        """Runs a command in the machine; returns its output, raises AssertionError if it fails."""
        ran = self.attempt(*command)
        assert ran.returncode == 0, f"{' '.join(command)}:\n{ran.stdout}{ran.stderr}"
        return ran.stdout

    def attempt(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command in the machine."""
        return subprocess.run(
            [
                *("nsenter", f"--target={self._init_pid}", *NAMESPACES),
                *("env", "-i", f"PATH={PATH}", "LC_ALL=C.UTF-8", "HOME=/root", *command),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )

    def _find_init(self) -> int:
        pid = self._boot.pid
        assert self._boot.poll() is None, "the machine did not boot"
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        # Until it has changed its root, a command would meet this machine's own files.
        is_booted = children and Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n"
        return int(children[0]) if is_booted else 0

    def _is_running(self) -> bool:
        return self.attempt("systemctl", "is-system-running").stdout.strip() == "running"


def _cgroup_tree() -> Path | None:
    for mount in Path("/proc/self/mounts").read_text().splitlines():
        _, directory, kind, *_ = mount.split()
        if kind == "cgroup2":
            return Path(directory)
    return None
