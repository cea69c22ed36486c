"""Connections that end in every way, and what their owners saw of them.

    endings.py COUNT SEED

Run in a network namespace of its own, as root: makes another one beside it, and a remote host behind a TUN
device. Prints a line of JSON for each connection: its ends, how it ended, what each end sent, and within
which times it opened and closed, in nanoseconds of CLOCK_BOOTTIME.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import random
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tests.remote import ACK, FIN, HERE, KERNEL_PORT, REMOTE, RST, SYN, Remote, make_packet, set_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEW_NETWORK = 0x40000000
CLOSED = 7
"""TCP_CLOSE, as TCP_INFO has it."""
RESET = struct.pack("ii", 1, 0)
NARROW = "tbf rate 400mbit burst 200kb limit 100kb"
OUTSIDE, INSIDE = "10.99.0.1", "10.99.0.2"
PLAIN, CROSSING, SILENT = 80, 81, 82
"""Ports of the remote: one that answers, one whose FIN crosses ours, one that is gone after the handshake."""
FIRST_PORT = 30000
WORKERS = 6
SIZES = (0, 0, 1, 100, 1448, 10_000, 65_536, 300_000)
LARGE = 50_000_000
BURST = 1_000_000
"""More than fits through the narrow way to the box at once."""
SEGMENT = 1000
PATIENCE = 60.0
OFFSET = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.time_ns()
"""What CLOCK_BOOTTIME is ahead of the time of day, in nanoseconds."""
MILLISECOND = 1_000_000
FORKING = threading.Lock()
"""A process that is just made has all descriptors for a moment: what is closed then is not closed."""


class Ways(NamedTuple):
    by: str
    first: str | None
    act: Callable[[socket.socket, socket.socket, Amounts], int]
    """Returns when the last step of closing was begun."""


class Amounts(NamedTuple):
    up: int
    down: int


def boot() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def send(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    """And read all of it."""
    if not size:
        return
    thread = threading.Thread(target=sender.sendall, args=(bytes(size),))
    thread.start()
    left = size
    while left:
        read = len(receiver.recv(min(left, 1 << 20)))
        assert read, "it was closed too early"
        left -= read
    thread.join()


def exchange(client: socket.socket, server: socket.socket, amounts: Amounts) -> None:
    send(client, server, amounts.up)
    send(server, client, amounts.down)


def close_client(client: socket.socket, server: socket.socket, amounts: Amounts) -> int:
    exchange(client, server, amounts)
    client.close()
    assert server.recv(1) == b""
    return shut(server)


def close_server(client: socket.socket, server: socket.socket, amounts: Amounts) -> int:
    exchange(client, server, amounts)
    server.close()
    assert client.recv(1) == b""
    return shut(client)


def close_half(client: socket.socket, server: socket.socket, amounts: Amounts) -> int:
    """The server answers when the client has said all."""
    send(client, server, amounts.up)
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    send(server, client, amounts.down)
    client.close()
    return shut(server)


def reset_by_client(client: socket.socket, server: socket.socket, amounts: Amounts) -> int:
    exchange(client, server, amounts)
    return reset(client)


def reset_by_server(client: socket.socket, server: socket.socket, amounts: Amounts) -> int:
    exchange(client, server, amounts)
    return reset(server)


def leave_unread(client: socket.socket, server: socket.socket, amounts: Amounts) -> int:
    """The client closes before it has read all."""
    send(client, server, amounts.up)
    server.sendall(bytes(amounts.down))
    client.recv(1, socket.MSG_PEEK)
    return close(client)


def kill_client(client: socket.socket, server: socket.socket, amounts: Amounts) -> int:
    """Its process is killed."""
    exchange(client, server, amounts)
    with FORKING:
        holder = subprocess.Popen(["sleep", "infinity"], pass_fds=[client.fileno()])
    client.close()
    holder.kill()
    holder.wait()
    assert server.recv(1) == b""
    return shut(server)


def shut(last: socket.socket) -> int:
    """Close what is open of it; when that was begun."""
    began = boot()
    last.shutdown(socket.SHUT_WR)
    return began


def reset(end: socket.socket) -> int:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    return close(end)


def close(end: socket.socket) -> int:
    """No other process has it meanwhile."""
    with FORKING:
        began = boot()
        end.close()
    return began


WAYS = {
    "client": Ways("fin", "source", close_client),
    "server": Ways("fin", "destination", close_server),
    "half-close": Ways("fin", "source", close_half),
    "reset by client": Ways("reset", "source", reset_by_client),
    "reset by server": Ways("reset", "destination", reset_by_server),
    "unread": Ways("reset", "source", leave_unread),
    "killed": Ways("fin", "source", kill_client),
}


def await_closed(last: socket.socket) -> tuple[int, int]:
    """When it was last seen open, or first asked for, and when it was seen closed."""
    give_up_at = time.monotonic() + PATIENCE
    seen_open = asked = boot()
    while last.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != bytes([CLOSED]):
        assert time.monotonic() < give_up_at, "it does not close"
        seen_open = asked
        time.sleep(0.0002)
        asked = boot()
    return seen_open, boot()


def describe(
    source: Any, destination: Any, way: str, ways: tuple[str, str | None], amounts: Amounts, times: list[int]
) -> dict[str, Any]:
    return {
        "source": list(source[:2]),
        "destination": list(destination[:2]),
        "way": way,
        "by": ways[0],
        "first": ways[1],
        "sent": list(amounts),
        "times": times,
    }


class Place(NamedTuple):
    """Where a server listens, and from where to connect."""

    family: int
    listening: str
    to: str
    network: int | None
    """A descriptor of the network namespace of the server."""


@contextlib.contextmanager
def within(network: int | None) -> Iterator[None]:
    """What this thread makes is in this network namespace."""
    if network is None:
        yield
        return
    libc, own = ctypes.CDLL(None, use_errno=True), os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert libc.setns(network, NEW_NETWORK) == 0
    try:
        yield
    finally:
        assert libc.setns(own, NEW_NETWORK) == 0
        os.close(own)


def unmap(address: Any) -> list[Any]:
    return [address[0].removeprefix("::ffff:"), address[1]]


def run_pair(place: Place, way: str, amounts: Amounts, pause: float) -> dict[str, Any]:
    """Both ends are here."""
    with within(place.network), socket.socket(place.family) as listener:
        listener.bind((place.listening, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with within(OWN[0] if place.network is not None else None):
            client = socket.socket(place.family)
        before = boot()
        client.connect((place.to, port))
        opened = boot()
        server, _ = listener.accept()
    ends = unmap(client.getsockname()), unmap(client.getpeername())
    time.sleep(pause)
    closing = WAYS[way].act(client, server, amounts)
    _, closed = await_closed(client if client.fileno() >= 0 else server)
    for end in (client, server):
        end.close()
    return describe(*ends, way, WAYS[way][:2], amounts, [before, opened, closing, closed])


OWN: list[int] = []


class Far(Remote):
    """Acknowledges what it is sent, sends, and closes; one connection a local port."""

    def __init__(self, remote: Remote) -> None:
        self._tun = remote._tun
        self._next: dict[tuple[int, int], tuple[int, int]] = {}
        """Of each connection by its ports: the next number to send, and the next to be acknowledged."""

    def push(self, port: int, to_port: int, content: bytes, flags: int = ACK) -> None:
        """In segments."""
        for at in range(0, len(content), SEGMENT):
            self._tell(port, to_port, ACK, content[at : at + SEGMENT])
            time.sleep(0.001)
        if flags & (FIN | RST):
            self._tell(port, to_port, flags, b"")

    def _tell(self, port: int, to_port: int, flags: int, content: bytes) -> None:
        sequence, acknowledged = self._next[port, to_port]
        self._next[port, to_port] = sequence + (len(content) or 1), acknowledged
        os.write(self._tun, make_packet(port, to_port, sequence, acknowledged, flags, content))

    def open_from(self, port: int) -> None:
        self._next[port, KERNEL_PORT] = 1001, 0
        os.write(self._tun, make_packet(port, KERNEL_PORT, 1000, 0, SYN))

    def _answer(self, segment: bytes) -> None:
        """`segment` is from the kernel's socket at `port` to ours at `to_port`."""
        port, to_port, sequence, _, offset, flags = struct.unpack_from("!HHIIBB", segment)
        length = len(segment) - (offset >> 4) * 4
        if flags & RST:
            return
        if flags & SYN:
            self._next[to_port, port] = 1001, sequence + 1
            answer = (1001, sequence + 1, ACK) if flags & ACK else (1000, sequence + 1, SYN | ACK)
            os.write(self._tun, make_packet(to_port, port, *answer))
            return
        if to_port == SILENT or not (length or flags & FIN):
            return
        own, until = self._next[to_port, port][0], sequence + length
        self._next[to_port, port] = own, until
        if not flags & FIN:
            os.write(self._tun, make_packet(to_port, port, own, until, ACK))
        elif to_port == CROSSING:
            os.write(self._tun, make_packet(to_port, port, own, until, FIN | ACK))
            time.sleep(0.02)
            os.write(self._tun, make_packet(to_port, port, own + 1, until + 1, ACK))
        else:
            os.write(self._tun, make_packet(to_port, port, own, until + 1, FIN | ACK))


def await_sent(client: socket.socket) -> None:
    """All that was given to the kernel is acknowledged (tcp(7): SIOCOUTQ); a slow machine takes a while."""
    while int.from_bytes(fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)), sys.byteorder):
        time.sleep(0.001)


def run_egress(far: Far, to_port: int, way: str, amounts: Amounts, pause: float) -> dict[str, Any]:
    client = socket.socket()
    before = boot()
    client.connect((REMOTE, to_port))
    opened, ends = boot(), (client.getsockname(), client.getpeername())
    ways: tuple[str, str | None] = ("fin", "source")
    closing = 0
    if to_port == SILENT:
        amounts, ways = Amounts(0, 0), ("timeout", None)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
            client.setsockopt(socket.IPPROTO_TCP, option, 1)
    else:
        client.sendall(bytes(amounts.up))
        far.push(to_port, ends[0][1], bytes(amounts.down))
        left = amounts.down - (SEGMENT // 2 if way == "unread" else 0)
        while left > 0:
            left -= len(client.recv(left))
        time.sleep(pause)
        await_sent(client)
        closing = boot()
        if way == "unread":
            ways, amounts = ("reset", "source"), Amounts(amounts.up, amounts.down - SEGMENT // 2)
            closing = close(client)
            return describe(*ends, f"far {way}", ways, amounts, [before, opened, closing, boot()])
        if way == "reset by the other":
            ways = "reset", "destination"
            far.push(to_port, ends[0][1], b"", RST | ACK)
        else:
            client.shutdown(socket.SHUT_WR)
            ways = "fin", "both" if to_port == CROSSING else "source"
    seen_open, closed = await_closed(client)
    client.close()
    closing = closing or seen_open
    return describe(*ends, f"far {way}", ways, amounts, [before, opened, closing, closed])


def run_ingress(far: Far, listener: socket.socket, port: int, amounts: Amounts) -> dict[str, Any]:
    before = boot()
    far.open_from(port)
    server, _ = listener.accept()
    opened, ends = boot(), (server.getpeername(), server.getsockname())
    far.push(port, KERNEL_PORT, bytes(amounts.up))
    left = amounts.up
    while left:
        left -= len(server.recv(left))
    server.sendall(bytes(amounts.down))
    time.sleep(0.05)
    far.push(port, KERNEL_PORT, b"", FIN | ACK)
    assert server.recv(1) == b""
    closing = shut(server)
    _, closed = await_closed(server)
    server.close()
    return describe(*ends, "far ingress", ("fin", "source"), amounts, [before, opened, closing, closed])


def make_box() -> int:
    """Another network namespace, and a way there; it goes with this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        assert ctypes.CDLL(None).unshare(NEW_NETWORK) == 0
        os.read(reader, 1)
        os._exit(0)
    own = os.stat("/proc/self/ns/net").st_ino
    while os.stat(f"/proc/{child}/ns/net").st_ino == own:
        time.sleep(0.01)
    inside = ["nsenter", f"--net=/proc/{child}/ns/net"]
    for command in (
        ["ip", "link", "add", "way0", "type", "veth", "peer", "name", "way1", "netns", str(child)],
        ["ip", "address", "add", f"{OUTSIDE}/24", "dev", "way0"],
        ["ip", "link", "set", "way0", "up"],
        [*inside, "ip", "address", "add", f"{INSIDE}/24", "dev", "way1"],
        [*inside, "ip", "link", "set", "way1", "up"],
        [*inside, "ip", "link", "set", "lo", "up"],
        # What is too much for it is dropped before it leaves: it is sent again, and is no retransmission.
        ["tc", "qdisc", "add", "dev", "way0", "root", *NARROW.split()],
    ):
        subprocess.run(command, check=True)
    return os.open(f"/proc/{child}/ns/net", os.O_RDONLY)


def main(count: int, seed: int) -> None:
    rng = random.Random(seed)
    remote = Far(set_up())
    threading.Thread(target=remote.run, daemon=True).start()
    OWN.append(os.open("/proc/self/ns/net", os.O_RDONLY))
    box = make_box()
    places = [
        Place(socket.AF_INET, "127.0.0.1", "127.0.0.1", None),
        Place(socket.AF_INET6, "::1", "::1", None),
        Place(socket.AF_INET6, "::", "::ffff:127.0.0.1", None),
        Place(socket.AF_INET, INSIDE, INSIDE, box),
    ]
    jobs: list[Callable[[], dict[str, Any]]] = []
    far = count // 20
    for number in range(count - 2 * far):
        way, place = rng.choice(list(WAYS)), rng.choice(places)
        size = [LARGE if number % 300 == 7 else rng.choice(SIZES) for _ in range(2)]
        if place.network and number % 3:
            size[0] = BURST
        amounts, pause = (
            Amounts(size[0], max(1, min(size[1], 10_000)) if way == "unread" else size[1]),
            (rng.choice((0, 0, 0.001, 0.02, 0.1, 1))),
        )
        jobs.append(lambda p=place, w=way, a=amounts, t=pause: run_pair(p, w, a, t))  # type: ignore[misc]
    for number in range(far):
        port = SILENT if number % 10 == 0 else CROSSING if number % 5 == 1 else PLAIN
        way = rng.choice(("closed", "unread", "reset by the other")) if port == PLAIN else "closed"
        amounts = Amounts(rng.choice((0, 1, 5000, 20_000)), rng.choice((1000, 6000)))
        jobs.append(lambda p=port, w=way, a=amounts: run_egress(remote, p, w, a, 0.01))  # type: ignore[misc]
    rng.shuffle(jobs)
    with ThreadPoolExecutor(WORKERS) as pool:
        for told in pool.map(lambda job: job(), jobs):
            print(json.dumps(told), flush=True)
    with socket.create_server((HERE, KERNEL_PORT)) as listener:
        for number in range(far):
            amounts = Amounts(rng.choice((0, 1000, 8000)), rng.choice((0, 1, 5000)))
            print(json.dumps(run_ingress(remote, listener, FIRST_PORT + number, amounts)), flush=True)


def compare(truths: list[dict[str, Any]], events: list[dict[str, Any]], counted: bool) -> list[str]:
    """What was not told of these connections as it was. `counted`: the kernel tells bytes and errors."""
    told: dict[Any, dict[str, list[dict[str, Any]]]] = {}
    for event in events:
        ends = tuple(
            event.get(f"{end}_{part}") for end in ("SOURCE", "DESTINATION") for part in ("IP", "PORT")
        )
        told.setdefault(ends, {}).setdefault(event.get("EVENT_ACTION", ""), []).append(event)
    same: dict[Any, list[dict[str, Any]]] = {}
    for truth in sorted(truths, key=lambda one: one["times"]):
        ends = tuple(str(part) for end in ("source", "destination") for part in truth[end])
        same.setdefault(ends, []).append(truth)
    faults = []
    for ends, ours in same.items():
        # After a reset the kernel may give a port again at once.
        found = told.get(ends, {})
        opened, closed = (
            sorted(found.get(f"connection-{kind}", []), key=by_start) for kind in ("opened", "closed")
        )
        if not len(opened) == len(closed) == len(ours):
            faults += [f"opened {len(opened)}, closed {len(closed)}: {ours} {closed}"]
            continue
        for truth, first, last in zip(ours, opened, closed):
            faults += [f"{fault}: {truth} {last}" for fault in list_faults(truth, first, last, counted)]
    return faults


def by_start(event: dict[str, Any]) -> str:
    return str(event["EVENT_START"])


def parse(text: str) -> int:
    """Microseconds since the epoch."""
    moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    return round(moment.timestamp() * 1e6)


def list_faults(
    truth: dict[str, Any], opened: dict[str, Any], closed: dict[str, Any], counted: bool
) -> list[str]:
    before, after, closing, gone = truth["times"]
    up, down = truth["sent"]
    duration = int(closed["EVENT_DURATION"])
    expected = {"TCPWATCHD_CLOSED_BY": truth["by"], "TCPWATCHD_CLOSED_FIRST": truth["first"]}
    if counted:
        expected |= {"SOURCE_BYTES": str(up), "DESTINATION_BYTES": str(down), "NETWORK_BYTES": str(up + down)}
    elif truth["by"] != "fin":
        expected = {"TCPWATCHD_CLOSED_BY": None}
    faults = [f"{name} is not {value}" for name, value in expected.items() if closed.get(name) != value]
    if not closing - after - MILLISECOND <= duration <= gone - before + MILLISECOND:
        faults.append(f"{duration} is not from {closing - after} to {gone - before}")
    if closed["TCPWATCHD_CLOSE_DETECTED_BY"] != "trace":
        faults.append("not by the trace")
    start, end = (parse(closed[name]) * 1000 + OFFSET for name in ("EVENT_START", "EVENT_END"))
    if not (before - MILLISECOND <= start <= after + MILLISECOND):
        faults.append("EVENT_START is not when it opened")
    if not (closing - MILLISECOND <= end <= gone + MILLISECOND):
        faults.append("EVENT_END is not when it closed")
    kept = [
        name for name in opened if name not in ("MESSAGE", "MESSAGE_ID", "EVENT_ACTION") and name[0] != "_"
    ]
    return faults + [f"{name} changed" for name in kept if opened[name] != closed.get(name)]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
