"""Proves an event probe by connections of our own: what it stores must be what we know of them.

They go over loopback, in a network namespace of their own where one can be made, and are recorded by an
instance of their own. Offsets that do not fit the running kernel are found out here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from tcpwatchd.connection import TcpState, unmap
from tcpwatchd.failure import describe
from tcpwatchd.kernel.instance import (
    PROBES,
    TraceError,
    set_buffer_size,
    write_settings,
)
from tcpwatchd.kernel.pages import Decoder
from tcpwatchd.kernel.probe import ProbeError
from tcpwatchd.kernel.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tcpwatchd.connection import Endpoint, Transition

PROOF_INSTANCE = "tcpwatchd-proof-"
"""What begins the name of the instance; the PID follows."""
PATIENCE = 5.0
"""Seconds for the connections, and for their records."""
PROOF_BUFFER_KB = 1024
"""A CPU."""
TRIES = 3
USER = 65534
"""Makes the connections where we may become another: a field that is always 0 would pass for root's."""
NEW_NETWORK = 0x40000000
"""CLONE_NEWNET (unshare(2))."""
INTERFACE_UP = 1
GET_FLAGS, SET_FLAGS = 0x8913, 0x8914
"""SIOCGIFFLAGS and SIOCSIFFLAGS (netdevice(7))."""
QUESTION, ANSWER, READ = b"question", b"an answer", 2
"""What each connection carries, and how much of the answer is read where it is not read whole."""
INITIAL_PIDS = "pid:[4026531836]"
"""The initial PID namespace (include/linux/proc_ns.h)."""
CLOSED = "closed"
CONTROL_GROUPS = "/sys/fs/cgroup"


class Made(NamedTuple):
    """What the process that made the connections knows of them."""

    ends: list[tuple[str, int, str, int, str, bool]]
    """Address and port of each client, then of its server, the address where that one listens, and whether it
    was closed in order."""
    user: int
    network: int
    group: int | None
    """None without control groups of version 2."""
    thread: int | None
    """None outside the initial PID namespace."""
    name: str


def prove(tracing: str, event: str, closing: bool) -> None:
    """Raises ProbeError when the event, and that for what closes, do not tell what they should."""
    path = f"{tracing}/instances/{PROOF_INSTANCE}{os.getpid()}"
    try:
        with contextlib.suppress(OSError):  # left by a crash of a process of the same number
            os.rmdir(path)
        os.mkdir(path)
        try:
            write_settings(path, f"{PROBES}/{event}", closing)
            set_buffer_size(path, PROOF_BUFFER_KB)
            trace = Trace(path)
            try:
                missing = find_missing(trace, closing)
            finally:
                trace.close()
        finally:
            os.rmdir(path)
    except (OSError, TraceError, ValueError) as error:
        raise ProbeError(f"the event probe could not be tried: {describe(error)}") from error
    if missing:
        raise ProbeError(f"the event probe does not tell what it should on this kernel: {missing[0]}")


def find_missing(trace: Trace, closing: bool) -> list[str]:
    """What was not recorded of connections that are made now, in words.

    The instance hears the whole machine: if it lost records, all is tried again.
    """
    for _ in range(TRIES):
        missing, lost = compare(trace, make_connections(), closing)
        if not missing or not lost:
            break
    return missing


def compare(trace: Trace, made: Made, closing: bool) -> tuple[list[str], int]:
    """What was not recorded, and how many records were lost."""
    decoder, lost = Decoder(trace.formats, trace.count_taken()), 0
    expected, found = set(list_expected(made)), set[tuple[Any, ...]]()
    if not closing:
        expected = {told for told in expected if told[0] != CLOSED}
    give_up_at = time.monotonic() + PATIENCE
    while not expected <= found and time.monotonic() < give_up_at:
        transitions, lost_now = decoder.decode(trace.drain())
        lost += lost_now
        found.update(describe_transition(transition, made) for transition in transitions)
        time.sleep(0.01)
    return [" ".join(map(str, told)) for told in expected - found], lost


def list_expected(made: Made) -> Iterator[tuple[Any, ...]]:
    """As `describe_transition` describes them."""
    owner = made.user, made.group, made.network
    caller = made.thread, made.name
    for client_ip, client_port, server_ip, server_port, listening, in_order in made.ends:
        client, server = str(pack(client_ip, client_port)), str(pack(server_ip, server_port))
        yield "listens", str(pack(listening, server_port)), "", *owner, *caller
        yield "connects", "", server, *owner, *caller
        yield "opened", client, server, *owner
        yield "accepted", server, client, *owner
        unread, error = (0, 0) if in_order else (len(ANSWER) - READ, errno.ECONNRESET)
        asked, answered = len(QUESTION), len(ANSWER)
        yield CLOSED, client, server, made.network, 0, asked, asked + 1, answered, unread
        yield CLOSED, server, client, made.network, error, answered, answered, asked, 0


def describe_transition(transition: Transition, made: Made) -> tuple[Any, ...]:
    """What is proved of it; what is not known of the connections here is left out."""
    _, _, old, new, end, thread, name, kept, closing = transition
    if closing:
        return CLOSED, str(end.local), str(end.remote), closing.network, closing.error, *closing[3:]
    if kept is None:
        return ()
    owner = kept.user, kept.group if made.group is not None else None, kept.network
    caller = thread if made.thread is not None else None, (name or b"").decode(errors="replace")
    if new == TcpState.LISTEN:
        return "listens", str(end.local), "", *owner, *caller
    if new == TcpState.SYN_SENT:
        return "connects", "", str(end.remote), *owner, *caller
    if new == TcpState.ESTABLISHED:
        made_by = "opened" if old == TcpState.SYN_SENT else "accepted"
        return made_by, str(end.local), str(end.remote), *owner
    return ()


def pack(ip: str, port: int) -> Endpoint:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    return unmap(socket.inet_pton(family, ip) + port.to_bytes(2, "big"))


def make_connections() -> Made:
    """In a process of their own. Raises OSError and ValueError."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.alarm(int(PATIENCE))
            os.write(writer, json.dumps(connect_all()).encode())
        except Exception as error:
            os.write(writer, json.dumps(describe(error)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    told = json.loads(text or '"it took too long"')
    if isinstance(told, str):
        raise ValueError(told)
    ends, *rest = told
    return Made([tuple(six) for six in ends], *rest)


def connect_all() -> Made:
    """IPv4, IPv6 where there is any, and IPv4 between sockets of IPv6."""
    with contextlib.suppress(OSError, ImportError, MemoryError):  # then the sandbox has a network of its own
        enter_new_network()
    with contextlib.suppress(OSError):
        os.setresuid(USER, USER, USER)
    ends = connect(socket.AF_INET, "127.0.0.1", "127.0.0.1")
    for listening, to in (("::1", "::1"), ("::", "::ffff:127.0.0.1")):
        with contextlib.suppress(OSError):  # no IPv6 here
            ends += connect(socket.AF_INET6, listening, to)
    initial = os.readlink("/proc/self/ns/pid") == INITIAL_PIDS
    with open("/proc/self/comm") as file:
        name = file.read().rstrip("\n")
    network = os.stat("/proc/self/ns/net").st_ino
    return Made(ends, os.getuid(), network, find_group(), os.getpid() if initial else None, name)


def connect(family: int, listening: str, to: str) -> list[tuple[str, int, str, int, str, bool]]:
    """One that is closed in order, and one that its client closes before it has read all: it is reset."""
    ends = []
    with socket.socket(family) as server:
        server.bind((listening, 0))
        server.listen()
        port = server.getsockname()[1]
        for in_order in (True, False):
            with socket.socket(family) as client:
                client.connect((to, port))
                with server.accept()[0] as accepted:
                    client.sendall(QUESTION)
                    accepted.recv(len(QUESTION), socket.MSG_WAITALL)
                    accepted.sendall(ANSWER)
                    if in_order:
                        accepted.close()
                    client.recv(len(ANSWER) + 1 if in_order else READ, socket.MSG_WAITALL)
                    ip, local_port = client.getsockname()[:2]
                    client.close()
            ends.append((ip, local_port, to, port, listening, in_order))
    return ends


def enter_new_network() -> None:
    """Raises OSError where that is forbidden."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).unshare(NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(any_socket, GET_FLAGS, request), 16)
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sH14x", b"lo", flags | INTERFACE_UP))


def find_group() -> int | None:
    """The number of our own control group, of version 2; None without one."""
    if not os.path.exists(f"{CONTROL_GROUPS}/cgroup.controllers"):
        return None
    with open("/proc/self/cgroup") as file:
        paths = [line.rstrip("\n")[3:] for line in file if line.startswith("0::")]
    return os.stat(CONTROL_GROUPS + paths[0]).st_ino if paths else None
