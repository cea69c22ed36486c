"""The program as a process, watched from outside."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "tcpwatchd"]


def with_proc(directory: Path) -> list[str]:
    """Prefix of a command that sees this directory as /proc."""
    return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /proc && exec "$@"', str(directory)]


class Daemon:
    """Started at once."""

    def __init__(self, *arguments: str, prefix: Any = (), **options: Any) -> None:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": PROJECT, **options}
        self.process = subprocess.Popen([*prefix, *PROGRAM, *arguments], **options)
        self._rest = b""

    def read_line(self, seconds: float = 10) -> str:
        """The next line on stdout."""
        assert self.process.stdout
        deadline = time.monotonic() + seconds
        readable = select.poll()
        readable.register(self.process.stdout, select.POLLIN)
        while b"\n" not in self._rest:
            ready = readable.poll(1000 * max(0.0, deadline - time.monotonic()))
            assert ready, f"no line within {seconds} s"
            chunk = self.process.stdout.read1()  # type: ignore[attr-defined]
            assert chunk, f"stdout ended; stderr: {self.read_errors()}"
            self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        return str(line.decode())

    def read_errors(self) -> str:
        assert self.process.stderr
        return str(self.process.stderr.read().decode())

    def end(self, signal: int) -> tuple[int, str, str]:
        """Send a signal; the exit status and what was left on stdout and stderr. It must end within 1 s."""
        began = time.monotonic()
        self.process.send_signal(signal)
        out, err = self.process.communicate(timeout=10)
        assert time.monotonic() - began < 1
        return self.process.returncode, (self._rest + (out or b"")).decode(), (err or b"").decode()


def run_program(*arguments: str, prefix: Any = (), **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end, which must come by itself."""
    options = {"capture_output": True, "cwd": PROJECT, "timeout": 20, **options}
    return subprocess.run([*prefix, *PROGRAM, *arguments], check=False, text=True, **options)
