"""Clients and servers that write down who they are, as JSON lines, to be compared with what is reported.

    owned.py clients COUNT SECONDS PORT...   of many kinds, a process each, over so many seconds
    owned.py serve PORT                      one process
    owned.py fork PORT                       a child for each connection
    owned.py activated                       of a socket that systemd made

What they are is told by the environment too: UNIT, USER_UNIT, BOX (their container). The file is in TRUTH.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sys
import threading
import time

HOSTILE = "x\n1 sshd"
KINDS = ("plain", "thread", "exec", "hostile")
INITIAL_PIDS = "pid:[4026531836]"


def write_down(**known: object) -> None:
    expected = {name: os.environ.get(name) for name in ("UNIT", "USER_UNIT", "BOX")}
    line = json.dumps({**known, **expected, "user": os.getuid()}) + "\n"
    file = os.open(os.environ["TRUTH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(file, line.encode())
    os.close(file)


def describe(address: tuple[str, int]) -> list[str]:
    return [address[0].removeprefix("::ffff:"), str(address[1])]


def open_one(kind: str, port: int, number: int) -> None:
    """Connect, write it down, live for a moment, end."""
    family, address = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"),
                       (socket.AF_INET6, "::ffff:127.0.0.1"))[number % 3]  # fmt: skip
    if kind in ("plain", "hostile"):
        with open("/proc/self/comm", "w") as comm:
            comm.write(HOSTILE if kind == "hostile" else f"client {number}")
    with open("/proc/thread-self/comm") as comm:
        name = comm.read()[:-1]
    thread = threading.get_native_id()
    initial = os.readlink("/proc/self/ns/pid") == INITIAL_PIDS
    session = socket.socket(family)
    session.connect((address, port))
    numbers = {"process": os.getpid(), "thread": thread} if initial else {}
    write_down(client=describe(session.getsockname()), server=port, name=name, **numbers)
    life = 10 ** random.uniform(-3, 0)
    if kind == "exec":
        os.set_inheritable(session.fileno(), True)
        os.execv("/bin/sleep", ["sleep", f"{life:.3f}"])  # noqa: S606, the words are ours
    time.sleep(life)
    os._exit(0)


def run_clients(count: int, seconds: float, ports: list[int]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    random.seed(1)
    for number in range(count):
        if not os.fork():
            random.seed(number)
            kind, port = KINDS[number % len(KINDS)], ports[number % len(ports)]
            try:
                if kind == "thread":
                    threading.Thread(target=open_one, args=(kind, port, number)).start()
                    time.sleep(3)
                else:
                    open_one(kind, port, number)
            finally:
                os._exit(1)
        time.sleep(seconds / count)
    time.sleep(3)


def listen(port: int) -> socket.socket:
    server = socket.socket(socket.AF_INET6)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.bind(("::", port))
    server.listen(128)
    return server


def serve(server: socket.socket, children: bool) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sessions = []
    while True:
        session, peer = server.accept()
        known = {"accepted": describe(peer), "server": server.getsockname()[1], "process": os.getpid()}
        if children and not os.fork():
            write_down(**known)
            with contextlib.suppress(OSError):
                session.recv(1)
            os._exit(0)
        if children:
            session.close()
        else:
            write_down(**known)
            sessions.append(session)


def main() -> None:
    mode, *arguments = sys.argv[1:]
    if mode == "clients":
        run_clients(int(arguments[0]), float(arguments[1]), [int(port) for port in arguments[2:]])
    elif mode == "activated":
        serve(socket.socket(fileno=3), children=False)
    else:
        serve(listen(int(arguments[0])), children=mode == "fork")


if __name__ == "__main__":
    main()
