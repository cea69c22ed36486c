"""Network namespaces of the tests' own, held by a process each."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

TRACING = Path("/sys/kernel/tracing")


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output is text, and part of the error when it fails."""
    result = subprocess.run(command, check=False, text=True, capture_output=True, **options)
    assert result.returncode == 0, f"{command}: status {result.returncode}\n{result.stdout}{result.stderr}"
    return result


def wait_until(condition: Any, seconds: float, what: str) -> None:
    """Poll a condition; fail when it does not become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def mount_tracefs() -> None:
    """Where it is missing: systemd mounts it on a machine that it boots."""
    if os.geteuid() == 0 and TRACING.is_dir() and not (TRACING / "instances").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACING], check=False)


class Namespace:
    """An empty network with loopback up; `prefix` before a command makes it run there."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.pid = self._holder.pid
        own, made = os.readlink("/proc/self/ns/net"), Path(f"/proc/{self.pid}/ns/net")
        wait_until(lambda: os.readlink(made) != own, 10, "a namespace of its own")
        self.prefix = enter_network(self.pid)
        run(*self.prefix, "ip", "link", "set", "lo", "up")

    def join(self, address: str, other: int, other_address: str) -> None:
        """Connect it to the network of process `other` by a veth pair, both ends in one /24."""
        ends = ["ve0", "type", "veth", "peer", "name", "ve1", "netns", str(other)]
        run(*self.prefix, "ip", "link", "add", *ends)
        for prefix, link, ip in (
            (self.prefix, "ve0", address),
            (enter_network(other), "ve1", other_address),
        ):
            run(*prefix, "ip", "address", "add", f"{ip}/24", "dev", link)
            run(*prefix, "ip", "link", "set", link, "up")

    def __enter__(self) -> Namespace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.terminate()
        self._holder.wait()


def enter_network(pid: int) -> list[str]:
    return ["nsenter", "--target", str(pid), "--net"]
