"""A Debian container with a systemd of its own, booted by systemd-nspawn from a cached tree."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tests.namespace import TRACING, run, wait_until

if TYPE_CHECKING:
    from types import TracebackType

PROJECT = Path(__file__).parents[2]
CACHE = Path(tempfile.gettempdir()) / "tcpwatchd-trees"
PACKAGES = "systemd,systemd-sysv,python3-systemd,python3-sdnotify,iproute2,make,rpm"
FAIL2BAN = "fail2ban,nftables"
REPORT = "python3-jinja2,python3-rich"
PROMETHEUS = "prometheus,prometheus-node-exporter"
BOOT_TIMEOUT = 60.0

Booted = TypeVar("Booted", bound="Container")


def find_mirror() -> str:
    """The archive that apt is set up with."""
    targets = run(
        "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"
    )
    return targets.stdout.split()[0]


def make_tree(suite: str, more: str = "") -> Path:
    """The root of a minimal Debian, with more packages if wanted; made once and kept, never changed after."""
    tree = CACHE / f"{suite}-{hashlib.sha256(f'{PACKAGES} {more}'.encode()).hexdigest()[:12]}"
    if tree.exists():
        return tree
    CACHE.mkdir(exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=CACHE))
    if more:
        run("cp", "--archive", "--no-target-directory", make_tree(suite), partial)
        install_more(partial, more.split(","))
    else:
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, partial, find_mirror())
        partial.chmod(0o755)
    partial.rename(tree)
    return tree


def install_more(root: Path, packages: list[str]) -> None:
    """With apt, inside; the network and its names are this machine's."""
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    inside = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "-D", str(root)]
    quietly = ["--setenv=DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq"]
    run(*inside, *quietly, "--no-install-recommends", *packages)


class Layers:
    """A throw-away copy of a tree, at `root`."""

    def __init__(self, tree: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tcpwatchd-layers-"))
        self.root = self.folder / "root"
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir()
        layers = f"lowerdir={tree},upperdir={self.folder}/upper,workdir={self.folder}/work"
        run("mount", "-t", "overlay", "overlay", "-o", layers, self.root)

    def remove(self) -> None:
        run("umount", self.root)
        shutil.rmtree(self.folder)


class Container:
    """A booted container over a throw-away copy of a tree; `leader` is its PID 1 as this machine sees it."""

    def __init__(self, suite: str, traced: bool = False, more: str = "") -> None:
        """`traced`: with this machine's tracefs, whose instances are the same for all containers; `more`: as
        for a tree.
        """
        self._traced = traced
        self._layers = Layers(make_tree(suite, more))
        self.root = self._layers.root
        self._console = (self._layers.folder / "console").open("wb")
        self.leader = 0

    def __enter__(self: Booted) -> Booted:
        return self

    def install(self) -> None:
        """The service, from the source, and a journal on disk. Before it boots."""
        install(self.root)
        (self.root / "var/log/journal").mkdir(exist_ok=True)

    def boot(self) -> None:
        command = ["systemd-nspawn", "-D", str(self.root), "--private-network", "-b"]
        flags = ["--register=no", "--keep-unit", "--console=pipe"]
        if self._traced:
            flags.append(f"--bind={TRACING}:/tracing")
        self._nspawn = subprocess.Popen(
            command + flags, stdin=subprocess.DEVNULL, stdout=self._console, stderr=self._console
        )
        wait_until(self._find_leader, BOOT_TIMEOUT, f"PID 1; see {self._console.name}")
        wait_until(self._is_running, BOOT_TIMEOUT, f"boot; see {self._console.name}")
        if self._traced:
            self.run("mount", "--bind", "/tracing", str(TRACING))

    def _find_leader(self) -> bool:
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(FileNotFoundError):  # nspawn's first child ends when PID 1 runs
                if re.search(r"^NSpid:.*\t1$", Path(f"/proc/{child}/status").read_text(), re.MULTILINE):
                    self.leader = int(child)
        return self.leader != 0

    def _is_running(self) -> bool:
        return self.try_run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def try_run(self, *command: str) -> subprocess.CompletedProcess[str]:
        inside = ["nsenter", "--target", str(self.leader), "--all", *command]
        return subprocess.run(inside, check=False, text=True, capture_output=True)

    def run(self, *command: str) -> str:
        """Run a command inside; its output. It must succeed."""
        return run("nsenter", "--target", str(self.leader), "--all", *command).stdout

    def show(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "--property", name, "--value", unit).strip()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.leader:
            self._nspawn.terminate()
            self._nspawn.wait(timeout=30)
        self._console.close()
        self._layers.remove()


def install(root: Path) -> None:
    """As an administrator does it from the source: `make install`, here into the tree before it boots."""
    path = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    run("make", "-C", PROJECT, "install", f"DESTDIR={root}", env=path)


def copy_source(target: Path) -> None:
    """The files that git knows, or would."""
    listed = run("git", "-C", PROJECT, "ls-files", "--cached", "--others", "--exclude-standard").stdout
    for name in filter(lambda name: (PROJECT / name).exists(), listed.splitlines()):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, target / name)
