"""Hands a file of metrics to whoever asks for /metrics, over sockets that listen already."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import selectors
import socket
import stat
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer, TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, NamedTuple

from tcpwatchd.failure import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

PLACE = "/metrics"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METHODS = "GET, HEAD"
PATIENCE = 5.0
"""Seconds for a connection, from when it is accepted until it is cut."""
MOST = 32
"""Connections at once: for one more, the oldest goes."""
MOST_HEAD = 16 << 10
"""Bytes of a request."""
MOST_REST = 1 << 20
"""Bytes that are read, after the answer, of what else was sent: unread, they would have the kernel reset the
connection, and with it what is on its way.
"""
IDLE = 300.0
"""Seconds without a connection after which the program ends."""
LINGER = 1.0
"""Seconds that it goes on without a file: what starts more often systemd takes for a loop, and gives up."""
LOOK_EVERY = 0.1
"""Seconds between two looks at what is open, while anything is."""
NOTHING = b"No metrics: tcpwatchd does not run, or was started a moment ago. Ask again.\n"


class Answer(NamedTuple):
    status: HTTPStatus
    kind: str
    text: bytes


class Server(ThreadingMixIn, TCPServer):
    """`listeners` are sockets that listen, `path` is the file; `idle` and `patience` as above, in seconds.

    A thread a connection, so whoever is slow keeps nobody else from being served.
    """

    daemon_threads = True
    block_on_close = False
    timeout = 0.0

    def __init__(
        self, listeners: Sequence[socket.socket], path: str, idle: float = IDLE, patience: float = PATIENCE
    ) -> None:
        # Not that of a TCPServer: it makes a socket, which the service may not.
        BaseServer.__init__(self, listeners[0].getsockname(), Handler)
        self._listeners, self._path = listeners, path
        self._idle, self._patience = idle, patience
        self._open: dict[socket.socket, float] = {}
        """When each is cut, in seconds of CLOCK_MONOTONIC; the oldest comes first."""
        self._lock = threading.Lock()
        """Of the former: a socket is in it until it is closed."""
        self._end_at = math.inf
        self._told = ""

    def serve(self) -> None:
        """Until nobody came for a time, or there is no file. Whoever comes later is for the next process."""
        with selectors.DefaultSelector() as selector:
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ)
            idle_at = time.monotonic() + self._idle
            while (moment := time.monotonic()) < min(idle_at, self._end_at):
                self._cut(moment)
                if self._open:
                    idle_at = moment + self._idle
                pause = LOOK_EVERY if self._open else idle_at - moment
                for key, _ in selector.select(min(pause, self._end_at - moment)):
                    self.socket = key.fileobj  # type: ignore[assignment]
                    self.handle_request()
                    idle_at = time.monotonic() + self._idle
        while self._open:
            self._cut(time.monotonic())
            time.sleep(0.01)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= MOST:
                self._hang_up(next(iter(self._open)))
            self._open[request] = time.monotonic() + self._patience
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def _cut(self, moment: float) -> None:
        with self._lock:
            for request in [request for request, until in self._open.items() if until <= moment]:
                self._hang_up(request)

    def _hang_up(self, request: socket.socket) -> None:
        """What waits for it is woken, and closes it."""
        del self._open[request]
        with contextlib.suppress(OSError):  # the other end did so before
            request.shutdown(socket.SHUT_RDWR)

    def find_answer(self) -> Answer:
        """To whoever asks for the metrics."""
        try:
            return Answer(HTTPStatus.OK, METRICS_TYPE, read_file(self._path))
        except (FileNotFoundError, NotADirectoryError):
            # The directory is bound when this process is started, and may be another one by now.
            self._end_at = min(self._end_at, time.monotonic() + LINGER)
            return plain(HTTPStatus.SERVICE_UNAVAILABLE, NOTHING)
        except OSError as error:
            self._tell(error)
            return plain(HTTPStatus.INTERNAL_SERVER_ERROR, b"The metrics cannot be read.\n")

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002, the names are the library's
        """A client that goes is no error."""
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        """Once, until it is another."""
        text = describe(error)
        if text != self._told:
            self._told = text
            print(f"tcpwatchd-metrics: {text}", file=sys.stderr, flush=True)


class Handler(BaseHTTPRequestHandler):
    """One request a connection."""

    server: Server
    server_version = "tcpwatchd"
    sys_version = ""
    default_request_version = request_version = "HTTP/1.0"
    command = requestline = ""

    def handle(self) -> None:
        head = read_head(self.connection)
        if is_whole(head):
            self.rfile.close()
            self.rfile = io.BytesIO(head)
            self.handle_one_request()
        elif len(head) >= MOST_HEAD:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_WR)
        left = MOST_REST
        while left > 0 and (rest := self.connection.recv(left)):
            left -= len(rest)

    def do_GET(self) -> None:
        if self.path.partition("?")[0] == PLACE:
            self._send(self.server.find_answer())
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET  # noqa: N815, the name is the library's

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """In a few words, and none of those that were sent. What is no method here is not allowed."""
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        self._send(plain(status, f"{status.phrase}\n".encode()))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.text)))
        self.send_header("Connection", "close")
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", METHODS)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.text)

    def version_string(self) -> str:
        return self.server_version

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are no news."""


def read_file(path: str) -> bytes:
    """Of a plain file alone: whose it is could have put a link or a pipe there. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no plain file", path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def plain(status: HTTPStatus, text: bytes) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", text)


def read_head(connection: socket.socket) -> bytes:
    """Of a request: until it is whole, too long, or nothing more comes. There can be something behind it."""
    head = b""
    while not is_whole(head) and len(head) < MOST_HEAD:
        more = connection.recv(MOST_HEAD - len(head))
        if not more:
            break
        head += more
    return head


def is_whole(head: bytes) -> bool:
    return b"\r\n\r\n" in head or b"\n\n" in head
