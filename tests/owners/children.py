"""Processes of the tests' own, that live until they are told to end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.owners.processes import INITIAL_PIDS

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMED = "import sys; open('/proc/self/comm', 'wb').write(bytes.fromhex(sys.argv[1]))"
WAIT = "print('ready', flush=True); import sys; sys.stdin.read()"

needs_initial_pids = pytest.mark.skipif(
    os.readlink("/proc/self/ns/pid") != INITIAL_PIDS,
    reason="needs the initial PID namespace: numbers of others are not used",
)


@contextlib.contextmanager
def start(code: str = "", *arguments: str) -> Iterator[int]:
    """Another Python that has run the code; its PID."""
    command = [sys.executable, "-I", "-S", "-c", f"{code}\n{WAIT}", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        yield child.pid
        child.stdin.close()


def end_one() -> int:
    """The PID that a process had that has ended."""
    with start() as number:
        pass
    return number
