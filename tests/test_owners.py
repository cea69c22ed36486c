"""Owners without the kernel's word: of what /proc shows in time nothing is wrong, and how much that is.

This machine's kernel may have event probes: then what follows holds all the more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from tcpwatchd.output import event
from tests.daemon import Daemon
from tests.namespace import Namespace, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.trace, pytest.mark.alone]

USERS = (1, 2, 65534)
EACH, SECONDS, PORT = 100, 5, 7101
OWNED = Path(__file__).parent / "system" / "owned.py"


def read(output: IO[bytes]) -> list[dict[str, Any]]:
    text = os.pread(output.fileno(), 1 << 26, 0)
    return [json.loads(line) for line in text.split(b"\n")[:-1]]


def run_owned(host: Namespace, truth: Path, user: int, *arguments: object) -> subprocess.Popen[bytes]:
    become = ["setpriv", f"--reuid={user}", "--clear-groups"]
    command = [*host.prefix, *become, sys.executable, str(OWNED), *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "TRUTH": str(truth)})


def run_server(host: Namespace, truth: Path) -> subprocess.Popen[bytes]:
    server = run_owned(host, truth, 3, "serve", PORT)
    sockets = Path(f"/proc/{host.pid}/net/tcp6")
    wait_until(lambda: f":{PORT:04X} " in sockets.read_text(), 10, "a listening server")
    return server


@pytest.fixture
def truth() -> Iterator[Path]:
    """A file that any user can write to."""
    path = Path("/tmp") / f"tcpwatchd-truth-{os.getpid()}"
    path.touch()
    path.chmod(0o666)
    yield path
    path.unlink()


def test_nothing_that_is_told_is_wrong(output: IO[bytes], truth: Path) -> None:
    with Namespace() as host:
        daemon = Daemon("--output", "json", "--trace", "require", prefix=host.prefix, stdout=output)
        wait_until(lambda: bool(read(output)), 10, "started")
        server = run_server(host, truth)
        clients = [run_owned(host, truth, user, "clients", EACH, SECONDS, PORT) for user in USERS]
        for process in clients:
            process.wait(timeout=60)
        server.kill()
        server.wait()
        daemon.end(signal.SIGTERM)
    made = [line for line in map(json.loads, truth.read_text().splitlines()) if "client" in line]
    found = {
        (entry["SOURCE_IP"], entry["SOURCE_PORT"]): entry
        for entry in read(output)
        if entry["MESSAGE_ID"] == event.CONNECTION_OPENED and entry["DESTINATION_PORT"] == str(PORT)
    }
    known = 0
    for client in made:
        entry = found[tuple(client["client"])]
        assert entry.get("PROCESS_PID") in (None, str(client["process"]))
        assert entry.get("PROCESS_THREAD_ID") in (None, str(client["thread"]))
        assert entry.get("PROCESS_USER_ID") in (None, str(client["user"]))
        known += "PROCESS_PID" in entry
    print(f"{known} of {len(made)} processes known")
    assert len(made) == EACH * len(USERS)
    assert known > len(made) / 4


def test_what_is_open_at_the_start_has_the_user_of_its_socket(output: IO[bytes], truth: Path) -> None:
    with Namespace() as host:
        server = run_server(host, truth)
        client = (
            f"import socket, time; held = socket.create_connection(('127.0.0.1', {PORT})); time.sleep(60)"
        )
        command = [*host.prefix, "setpriv", "--reuid=2", "--clear-groups", sys.executable, "-c"]
        session = subprocess.Popen([*command, client])
        wait_until(lambda: "accepted" in truth.read_text(), 10, "accepted")
        daemon = Daemon("--output", "json", "--trace", "no", prefix=host.prefix, stdout=output)
        wait_until(lambda: len(read(output)) > 1, 10, "reported")
        for process in (session, server):
            process.kill()
            process.wait()
        daemon.end(signal.SIGTERM)
    (entry,) = [e for e in read(output) if e["MESSAGE_ID"] == event.CONNECTION_OPENED]
    assert entry["TCPWATCHD_DETECTED_BY"] == "startup"
    assert (entry["PROCESS_USER_ID"], entry["DESTINATION_USER_ID"]) == ("2", "3")
