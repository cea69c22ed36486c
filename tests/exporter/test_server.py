"""What hands the metrics out: over real sockets, to clients of every kind."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.exporter.server import LINGER, MOST, MOST_HEAD, NOTHING, PATIENCE, Server
from tests.daemon import PROJECT
from tests.namespace import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXT = b"# HELP x Y.\n# TYPE x counter\nx 1\n" * 300
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
SLOW = 30
"""Seconds on a machine that is slow."""
STARTER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "tcpwatchd.exporter"])
"""
"""As systemd does it."""


def listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=2000)


class Served:
    """A server in a thread."""

    def __init__(
        self, path: Path, *more: socket.socket, idle: float = 600, patience: float = PATIENCE
    ) -> None:
        self.listener, self.path = listen(), path
        self.server = Server([self.listener, *more], str(path), idle, patience)
        self.thread = threading.Thread(target=self.server.serve, daemon=True)
        self.thread.start()

    def connect(self, first: bytes = b"") -> socket.socket:
        made = socket.create_connection(self.listener.getsockname(), timeout=SLOW)
        made.sendall(first)
        return made

    def ask(self, text: bytes = GET) -> tuple[bytes, dict[str, str], bytes]:
        """Status line, header and what follows."""
        with self.connect(text) as connection:
            return split(read_all(connection))

    def is_served(self) -> bool:
        return self.ask()[2] == TEXT


def read_all(connection: socket.socket) -> bytes:
    with contextlib.closing(connection), connection.makefile("rb") as file:
        return file.read()


def split(answer: bytes) -> tuple[bytes, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    return status, dict(line.decode().split(": ", 1) for line in lines), body


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "metrics").write_bytes(TEXT)
    made = Served(tmp_path / "metrics")
    yield made
    assert made.is_served(), "whatever came before"
    assert made.thread.is_alive()


def test_the_file_is_handed_out_whole(served: Served) -> None:
    status, header, body = served.ask()
    assert (status, body) == (b"HTTP/1.0 200 OK", TEXT)
    assert header.pop("Date")
    assert header == {
        "Server": "tcpwatchd",
        "Content-Type": "text/plain; version=0.0.4; charset=utf-8",
        "Content-Length": str(len(TEXT)),
        "Connection": "close",
    }
    served.path.write_bytes(TEXT * 100)
    assert served.ask()[2] == TEXT * 100
    served.path.write_bytes(TEXT)


def test_head_has_the_header_alone(served: Served) -> None:
    status, header, body = served.ask(GET.replace(b"GET", b"HEAD"))
    assert (status, header["Content-Length"], body) == (b"HTTP/1.0 200 OK", str(len(TEXT)), b"")
    status, header, body = served.ask(b"HEAD /other HTTP/1.1\r\n\r\n")
    assert (status, header["Content-Length"], body) == (b"HTTP/1.0 404 Not Found", "10", b"")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /metrics?x=1 HTTP/1.1", b"200 OK"),
        (b"GET / HTTP/1.1", b"404 Not Found"),
        (b"GET /metrics/ HTTP/1.1", b"404 Not Found"),
        (b"GET /../../etc/passwd HTTP/1.1", b"404 Not Found"),
        (b"GET //metrics/../metrics HTTP/1.1", b"404 Not Found"),
        (b"GET http://x/metrics HTTP/1.1", b"404 Not Found"),
        (b"POST /metrics HTTP/1.1", b"405 Method Not Allowed"),
        (b"DELETE /other HTTP/1.1", b"405 Method Not Allowed"),
        (b"__class__ /metrics HTTP/1.1", b"405 Method Not Allowed"),
        (b"get /metrics HTTP/1.1", b"405 Method Not Allowed"),
        (b"GET /metrics HTTP/2.0", b"505 HTTP Version Not Supported"),
        (b"GET /metrics HTTP/" + b"9" * 9000 + b".1", b"400 Bad Request"),
        (b"GET /metrics HTTP/-1.\xb2", b"400 Bad Request"),
        (b"GET /metrics\x1b[2J HTTP/1.1", b"404 Not Found"),
        (b"<script>alert(1)</script>", b"400 Bad Request"),
        (b"\0\xff\xfe", b"400 Bad Request"),
        (b"a b c d e", b"400 Bad Request"),
    ],
)
def test_what_is_asked_for(served: Served, request_line: bytes, status: bytes) -> None:
    """Nothing of a hostile request comes back, or is logged."""
    answered, header, body = served.ask(request_line + b"\r\n\r\n")
    assert answered == b"HTTP/1.0 " + status
    assert body == (TEXT if status == b"200 OK" else status[4:] + b"\n")
    assert ("Allow" in header) == (status[:3] == b"405")


def test_other_methods_are_told_what_is_allowed_though_they_bring_much(served: Served) -> None:
    """What is on its way is not lost in a reset."""
    host, port = served.listener.getsockname()
    put = http.client.HTTPConnection(host, port, timeout=SLOW)
    put.request("PUT", "/metrics", body=b"x" * 500_000)
    answer = put.getresponse()
    assert (answer.status, answer.getheader("Allow"), answer.read()) == (
        405,
        "GET, HEAD",
        b"Method Not Allowed\n",
    )


def test_a_request_is_bounded(served: Served) -> None:
    """In its head; of what follows no more is read than is polite."""
    assert served.ask(GET[:-2] + b"x: " + b"y" * MOST_HEAD)[0].startswith(b"HTTP/1.0 431 ")
    assert served.ask(GET[:-2] + b"x: y\r\n" * 200 + b"\r\n")[0].startswith(b"HTTP/1.0 431 ")
    with served.connect(GET) as endless, contextlib.suppress(ConnectionError):
        for _ in range(100):
            endless.sendall(bytes(1 << 20))
        pytest.fail("all was taken")


def test_random_bytes_end_nothing(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(7)
    for _ in range(300):
        text = bytearray(GET)
        for _ in range(generator.randrange(1, 8)):
            text[generator.randrange(len(text) - 4)] = generator.randrange(256)
        status = served.ask(bytes(text))[0]
        assert status[:9] == b"HTTP/1.0 " or status == b"" or status == TEXT.splitlines()[0], text
    assert capfd.readouterr().err == ""


def test_who_sends_nothing_or_too_slowly_is_cut(tmp_path: Path) -> None:
    """And keeps nobody from being served meanwhile."""
    (tmp_path / "metrics").write_bytes(TEXT)
    served = Served(tmp_path / "metrics", patience=0.5)
    silent, trickling = served.connect(), served.connect(b"GET /met")
    assert served.is_served()
    with contextlib.suppress(ConnectionError):
        for _ in range(SLOW * 10):
            time.sleep(0.1)
            trickling.sendall(b"x")
        pytest.fail("it was let in for ever")
    assert read_all(silent) == b""
    assert served.is_served()


def test_who_reads_nothing_is_cut(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_bytes(TEXT * 5000)
    served = Served(tmp_path / "metrics", patience=0.5)
    with served.connect(GET) as lazy:
        wait_until(lambda: served.server._open, SLOW, "it is there")
        wait_until(lambda: not served.server._open, SLOW, "it is cut")
        assert len(read_all(lazy)) < len(TEXT) * 5000


def test_who_is_one_too_many_is_served_and_the_oldest_goes(served: Served) -> None:
    several = [served.connect(b"GET") for _ in range(MOST)]
    wait_until(lambda: len(served.server._open) == MOST, SLOW, "all are there")
    assert served.is_served()
    assert read_all(several[0]) == b""
    several[-1].sendall(GET[3:])
    assert split(read_all(several[-1]))[2] == TEXT


def test_a_thousand_at_once(served: Served) -> None:
    before = threading.active_count()
    many = [served.connect() for _ in range(1000)]
    assert served.is_served()
    assert threading.active_count() <= before + 2 * MOST
    for one in many:
        one.close()


def test_several_sockets(tmp_path: Path) -> None:
    """As with two lines of ListenStream=."""
    (tmp_path / "metrics").write_bytes(TEXT)
    with listen() as other:
        served = Served(tmp_path / "metrics", other)
        assert served.is_served()
        with socket.create_connection(other.getsockname(), timeout=SLOW) as connection:
            connection.sendall(GET)
            assert split(read_all(connection))[2] == TEXT


def test_without_a_file_it_says_so_and_ends(tmp_path: Path) -> None:
    served = Served(tmp_path / "none" / "metrics")
    status, header, body = served.ask()
    assert (status, body) == (b"HTTP/1.0 503 Service Unavailable", NOTHING)
    assert header["Content-Type"] == "text/plain; charset=utf-8"
    served.thread.join(SLOW)
    assert not served.thread.is_alive()


def test_a_file_that_cannot_be_read_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics").mkdir()
    served = Served(tmp_path / "metrics")
    for _ in range(3):
        assert served.ask()[0] == b"HTTP/1.0 500 Internal Server Error"
    assert capfd.readouterr().err == f"tcpwatchd-metrics: {tmp_path}/metrics: no plain file\n"


@pytest.mark.parametrize("kind", ["a pipe", "a link"])
def test_what_is_no_plain_file_is_not_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    """Nor waited for: the daemon's user could have put it there."""
    path, elsewhere = tmp_path / "metrics", tmp_path / "secret"
    elsewhere.write_bytes(TEXT)
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(elsewhere)
    served = Served(path)
    for _ in range(3):
        assert served.ask()[0] == b"HTTP/1.0 500 Internal Server Error"
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_who_is_being_served_at_the_end_is_answered() -> None:
    """In a process of its own, whose end would end the thread."""
    with listen() as listener:
        process = start(listener)
        slow = socket.create_connection(listener.getsockname(), timeout=SLOW)
        slow.sendall(GET[:10])
        with socket.create_connection(listener.getsockname(), timeout=SLOW) as connection:
            connection.sendall(GET)
            assert split(read_all(connection))[2] == NOTHING
        time.sleep(LINGER + 0.5)
        slow.sendall(GET[10:])
        assert split(read_all(slow))[2] == NOTHING
        assert process.wait(SLOW) == 0
        process.communicate()


def test_the_end_loses_nobody_who_comes_just_then(tmp_path: Path) -> None:
    """One server after another, each idle after a hundredth of a second, as systemd starts them."""
    (tmp_path / "metrics").write_bytes(TEXT)
    listener, over, ended = listen(), threading.Event(), []

    def start_one_after_another() -> None:
        while not over.is_set():
            Server([listener], str(tmp_path / "metrics"), idle=0.01).serve()
            ended.append(True)

    systemd = threading.Thread(target=start_one_after_another)
    systemd.start()
    try:
        for number in range(60):
            time.sleep(0.09 + number % 20 / 400)
            with socket.create_connection(listener.getsockname(), timeout=SLOW) as connection:
                connection.sendall(GET)
                assert split(read_all(connection))[2] == TEXT
    finally:
        over.set()
        systemd.join(SLOW)
    assert len(ended) > 10


def start(listener: socket.socket, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", STARTER, str(listener.fileno())]
    variables = {"PATH": os.environ["PATH"], "LISTEN_FDS": "1", **environment}
    return subprocess.Popen(command, cwd=PROJECT, env=variables, pass_fds=(listener.fileno(),),
                            stderr=subprocess.PIPE)  # fmt: skip


def test_the_program_takes_the_socket_that_it_is_passed() -> None:
    """There are no metrics on a machine without the service: one process after another says so."""
    with listen() as listener:
        for _ in range(2):
            connection = socket.create_connection(listener.getsockname(), timeout=SLOW)
            connection.sendall(GET)
            process = start(listener)
            assert split(read_all(connection))[2] == NOTHING
            _, said = process.communicate(timeout=SLOW)
            assert (process.returncode, said) == (0, b"")


@pytest.mark.parametrize(
    ("listens", "environment", "words"),
    [
        (True, {"LISTEN_FDS": "0"}, b"what was passed is no socket that listens"),
        (True, {"LISTEN_FDS": "\xb2"}, b"no socket was passed: tcpwatchd-metrics.socket starts this program"),
        (True, {"LISTEN_FDS": ""}, b"no socket was passed: tcpwatchd-metrics.socket starts this program"),
        (False, {}, b"what was passed is no socket that listens"),
    ],
)
def test_without_a_socket_it_is_wrong_usage(listens: bool, environment: dict[str, str], words: bytes) -> None:
    with listen() if listens else socket.socket() as passed:
        process = start(passed, **environment)
        _, said = process.communicate(timeout=SLOW)
    assert process.returncode == 2
    assert said.startswith(b"tcpwatchd-metrics: " + words)
    assert said.count(b"\n") == 1


def test_what_is_no_socket_is_wrong_usage_too(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        process = start(file)  # type: ignore[arg-type]
        _, said = process.communicate(timeout=SLOW)
    assert process.returncode == 2
    assert said.count(b"\n") == 1
    assert b"Traceback" not in said


def test_somebody_elses_socket_is_not_taken() -> None:
    """LISTEN_PID says whose it is."""
    result = subprocess.run([sys.executable, "-m", "tcpwatchd.exporter"], cwd=PROJECT, check=False, text=True,
                            env={"LISTEN_FDS": "1", "LISTEN_PID": "1"}, capture_output=True)  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("tcpwatchd-metrics: no socket was passed")
