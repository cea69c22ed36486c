"""Instances of the running kernel's tracefs: set-up, the lock, decoding, losses."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.clock import boot_ns
from tcpwatchd.connection import TcpState, Transition
from tcpwatchd.kernel import instance
from tcpwatchd.kernel.instance import (
    TRACEPOINT,
    TRACING,
    TraceError,
    format_mask,
    open_to_all,
    read_file,
    write_file,
)
from tcpwatchd.kernel.pages import Decoder
from tcpwatchd.kernel.setup import remove, remove_stale, set_up
from tcpwatchd.kernel.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.trace, pytest.mark.alone]
NAME = "tcpwatchd-tests"
RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def path() -> Iterator[str]:
    made = set_up(NAME, 512).path
    yield made
    remove(made)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening


def open_one(server: socket.socket) -> int:
    """Opened, accepted, reset; the client's port."""
    with socket.create_connection(server.getsockname()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        server.accept()[0].close()
        return int(client.getsockname()[1])


def drain(trace: Trace) -> tuple[list[Transition], int]:
    return Decoder(trace.formats, {}).decode(trace.drain())


def ours(transitions: list[Transition], server: socket.socket) -> list[Transition]:
    """Those of the server's connections."""
    port = server.getsockname()[1]
    found = [t for t in transitions if port in (t.end.local.port, t.end.remote.port)]
    return [t for t in found if t.new != TcpState.LISTEN]


def count_written(path: str) -> int:
    return sum(int(read_file(str(cpu), "stats").split("entries: ")[1].split()[0]) for cpu in cpus(path))


def cpus(path: str) -> list[Path]:
    return list(Path(path, "per_cpu").iterdir())


def test_the_life_of_a_connection(path: str, server: socket.socket) -> None:
    trace = Trace(path)
    began = boot_ns()
    port = open_one(server)
    found = ours(drain(trace)[0], server)
    trace.close()
    steps = [(t.old.name, t.new.name, t.end.local.port) for t in found]
    here = server.getsockname()[1]
    assert steps == [
        ("CLOSE", "SYN_SENT", 0),
        ("SYN_SENT", "ESTABLISHED", port),
        ("SYN_RECV", "ESTABLISHED", here),
    ]
    assert all(began < t.time < boot_ns() for t in found)
    assert [t.time for t in found] == sorted(t.time for t in found)
    assert found[0].skaddr == found[1].skaddr != found[2].skaddr
    assert found[0].thread == os.getpid()
    assert str(found[1].end.remote) == f"127.0.0.1:{here}"


def test_what_never_was_established_closes(path: str) -> None:
    """A refused attempt, and a listening socket."""
    trace = Trace(path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    transitions = drain(trace)[0]
    trace.close()
    port = address[1]
    listening = {t.skaddr for t in transitions if t.new == TcpState.LISTEN and t.end.local.port == port}
    refused = {t.skaddr for t in transitions if t.new == TcpState.SYN_SENT and t.end.remote.port == port}
    for sockets, state in ((listening, TcpState.LISTEN), (refused, TcpState.SYN_SENT)):
        steps = [(t.old, t.new) for t in transitions if t.skaddr in sockets]
        assert steps == [(TcpState.CLOSE, state), (state, TcpState.CLOSE)]


def test_ipv6(path: str) -> None:
    trace = Trace(path)
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = open_one_ipv6(server)
        found = ours(drain(trace)[0], server)
    trace.close()
    assert f"[::1]:{port}" in {str(t.end.local) for t in found if t.new == TcpState.ESTABLISHED}


def open_one_ipv6(server: socket.socket) -> int:
    with socket.create_connection(server.getsockname()[:2]) as client:
        return int(client.getsockname()[1])


def test_a_second_set_up_empties_nothing(path: str, server: socket.socket) -> None:
    open_one(server)
    before = count_written(path)
    set_up(NAME, 512)
    open_to_all(path, TRACEPOINT)
    assert count_written(path) >= before > 0


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("trace_clock", "local"),
        ("tracing_on", "0"),
        (f"{TRACEPOINT}/enable", "0"),
        (f"{TRACEPOINT}/filter", "protocol==7"),
    ],
)
def test_a_half_made_instance_is_refused_and_repaired(path: str, file: str, value: str) -> None:
    write_file(path, file, value)
    with pytest.raises(TraceError, match=file.rpartition("/")[2]):
        Trace(path)
    set_up(NAME, 512)
    Trace(path).close()


def test_two_readers_do_not_steal_from_each_other(path: str, server: socket.socket) -> None:
    trace = Trace(path)
    for intrude in (lambda: Trace(path), lambda: set_up(NAME, 64)):
        with pytest.raises(TraceError, match="another process"):
            intrude()
    other = Trace(set_up(f"{NAME}-2", 64).path)
    open_one(server)
    assert len(ours(drain(trace)[0], server)) == len(ours(drain(other)[0], server)) > 0
    for reader in (trace, other):
        reader.close()
    remove(other.path)
    Trace(path).close()


def test_a_missing_instance_is_told() -> None:
    with pytest.raises(TraceError, match="does not exist"):
        Trace(f"{TRACING}/instances/none")


def test_buffers_have_a_bound(path: str) -> None:
    total = int(read_file(path, "buffer_total_size_kb"))
    assert total <= 16 * 1024 + 8 * len(cpus(path))


def test_lost_records_are_counted_exactly(server: socket.socket) -> None:
    path = set_up(f"{NAME}-small", 16).path
    trace = Trace(path)
    written = -sum(read_written(str(cpu)) for cpu in cpus(path))
    for _ in range(1000):
        open_one(server)
    before = trace.count_taken()
    drained = trace.drain()
    transitions, lost = Decoder(trace.formats, before).decode(drained)
    written += sum(read_written(str(cpu)) for cpu in cpus(path))
    trace.close()
    remove(path)
    assert lost > 0
    assert len(transitions) + lost == written
    assert sum(drained.taken.values()) - sum(before.values()) == len(transitions)


def read_written(cpu: str) -> int:
    """Records that the kernel wrote to a CPU's buffer: read, overwritten or still there."""
    stats = dict(line.split(": ") for line in read_file(cpu, "stats").splitlines())
    return int(stats["entries"]) + int(stats["overrun"]) + int(stats["read events"])


def test_stale_instances_are_removed() -> None:
    pid = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    stale, living = set_up(f"tcpwatchd-{pid}", 16).path, set_up(f"tcpwatchd-{os.getpid()}", 16).path
    remove_stale()
    assert (os.path.exists(stale), os.path.exists(living)) == (False, True)
    remove(living)


def test_buffers_that_differ_are_set_up_again(path: str) -> None:
    """The kernel then tells their size as X."""
    write_file(path, "per_cpu/cpu0/buffer_size_kb", "64")
    if len(cpus(path)) > 1:
        assert read_file(path, "buffer_size_kb") == "X"
    set_up(NAME, 512)
    assert read_file(path, "buffer_size_kb").split()[0] != "X"


def test_an_instance_that_cannot_be_set_up_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "FILTER", "no such field == 1")
    with pytest.raises(TraceError, match="filter"):
        set_up(f"{NAME}-3", 64)
    assert not os.path.exists(f"{TRACING}/instances/{NAME}-3")


def test_a_mask_names_every_cpu() -> None:
    assert format_mask(1) == "00000001"
    assert format_mask(32) == "ffffffff"
    assert format_mask(70) == "0000003f,ffffffff,ffffffff"
