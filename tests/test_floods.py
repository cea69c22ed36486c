"""More than anybody expects: rows, half-open handshakes, scans."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.output import event
from tests.daemon import Daemon, with_proc
from tests.holder import Traffic
from tests.namespace import Namespace, run, wait_until
from tests.table import HEADER4, HEADER6, endpoint4, replace, row, write_counters
from tests.test_proof import CLIENT, SERVER, count, ends, hosts, read, reported, start, told

if TYPE_CHECKING:
    from typing import IO

__all__ = ["hosts"]
pytestmark = pytest.mark.root
MILLION = 1_000_000
PORT = 7100
WATCHDOG = 30.0


def read_memory(daemon: Daemon) -> int:
    """Resident bytes."""
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", text)[0])


@pytest.mark.alone
def test_a_million_rows(tmp_path: Path) -> None:
    """The watchdog is fed all the while, and little stays in memory."""
    net = tmp_path / "self" / "net"
    net.mkdir(parents=True)
    write_counters(net)
    (net / "tcp").write_text(HEADER4.ljust(149) + "\n")
    (net / "tcp6").write_text(HEADER6 + "\n")
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": str(int(WATCHDOG * 1e6)),
            "RUNTIME_DIRECTORY": str(tmp_path / "run"),
            "MALLOC_TRIM_THRESHOLD_": "131072",
        }
        with open("/dev/null", "w") as nowhere:
            daemon = Daemon("--trace", "no", "--interval", "1", prefix=with_proc(tmp_path), stdout=nowhere,
                            env=environment)  # fmt: skip
        manager.settimeout(WATCHDOG)
        read_status(manager)
        before = read_memory(daemon)
        replace(net / "tcp", make_table(MILLION))
        fed, status = time.monotonic(), ""
        while not status.startswith(f"{MILLION} connections reported"):
            message = manager.recv(4096).decode()
            assert time.monotonic() - fed < WATCHDOG
            if "WATCHDOG=1" in message:
                fed = time.monotonic()
            status = message.partition("; ")[2]
        assert (read_memory(daemon) - before) / MILLION < 250
        assert daemon.end(signal.SIGTERM)[0] == 0


def read_status(manager: socket.socket) -> None:
    while b"READY=1" not in manager.recv(4096):
        pass


def make_table(rows: int) -> str:
    remote = endpoint4("192.0.2.1", 443)
    locals_ = (endpoint4(f"10.{i >> 16}.0.5", i & 0xFFFF) for i in range(rows))
    lines = (row(i, local, remote, 1, 100 + i).ljust(149) for i, local in enumerate(locals_))
    return "\n".join([HEADER4.ljust(149), *lines, ""])


@pytest.mark.alone
def test_half_open_handshakes(hosts: tuple[Namespace, Namespace], output: IO[bytes]) -> None:
    """From an address that nobody has: they stay in SYN_RECV, are not reported and take no memory."""
    server, client = hosts
    for setting in ("net.ipv4.tcp_syncookies=0", "net.ipv4.tcp_max_syn_backlog=65536"):
        run(*server.prefix, "sysctl", "-q", "-w", setting)
    daemon = start(server, output, "--trace", "require")
    listening = Traffic(server.pid, "listen", str(PORT), "4096")
    listening.truth()
    before = read_memory(daemon)
    spoofed = ["--spoof", CLIENT.replace(".2.2", ".2.99"), "--count", "20000", "--interval", "u100"]
    flood = ["hping3", "--quiet", "--syn", *spoofed, "--destport", str(PORT), SERVER]
    sent = subprocess.run([*client.prefix, *flood], check=False, capture_output=True, text=True)
    assert "20000 packets transmitted" in sent.stderr
    half_open = run(*server.prefix, "grep", "-c", " 03 ", "/proc/self/net/tcp").stdout
    time.sleep(4.5)
    after = read_memory(daemon)
    daemon.end(signal.SIGTERM)
    listening.end()
    assert int(half_open) > 1000
    assert reported(output, {PORT}) == []
    assert count(output, event.RECORDS_LOST) == 0
    assert after - before < 3 << 20, "rows of the table, and nothing else"


@pytest.mark.alone
@pytest.mark.parametrize(("scan", "found"), [("-sT", 1), ("-sS", 0)])
def test_port_scans(hosts: tuple[Namespace, Namespace], output: IO[bytes], scan: str, found: int) -> None:
    """A scan by connecting opens what is open; a half-open scan opens nothing."""
    server, client = hosts
    daemon = start(server, output, "--trace", "require")
    listening = Traffic(server.pid, "listen", str(PORT), "10")
    listening.truth()
    ports = ["-p", "1-10000", "--max-retries", "0", "-n", "-Pn"]
    text = run(*client.prefix, "nmap", scan, *ports, SERVER).stdout
    time.sleep(1)
    daemon.end(signal.SIGTERM)
    listening.end()
    assert f"{PORT}/tcp open" in text
    ours = [fields for fields in reported(output, range(1, 10001)) if SERVER in ends(fields)]
    assert [int(fields["DESTINATION_PORT"]) for fields in ours] == [PORT] * found
    assert told(output, event.RECORDS_LOST) == []
    assert read(output)[-1]["TCPWATCHD_MISSED_TRACE"] == "0"


def count_descriptors(daemon: Daemon) -> int:
    """Between two polls: a poll has some open for a moment."""
    counts = []
    for _ in range(50):
        counts.append(len(os.listdir(f"/proc/{daemon.process.pid}/fd")))
        time.sleep(0.01)
    return min(counts)


@pytest.mark.alone
def test_memory_and_descriptors_stay(output: IO[bytes], tmp_path: Path) -> None:
    """After 2,000 polls under load as after 100. What the allocator keeps of bursts is within 2 MiB."""
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path)}
    with Namespace() as host:
        daemon = start(host, output, "--trace", "require", "--interval", "0.1", env=environment)
        traffic = Traffic(host.pid, "churn", "100", "202")
        readings = []
        began = time.monotonic()
        for ticks in (100, 2000):
            time.sleep(max(0.0, began + ticks / 10 - time.monotonic()))
            readings.append((count_descriptors(daemon), read_memory(daemon)))
        server, clients, _ = traffic.truth()
        traffic.end()
        wait_until(lambda: len(reported(output, {server})) == len(clients), 20, "all reported")
        daemon.end(signal.SIGTERM)
    assert readings[0][0] == readings[1][0]
    assert readings[1][1] - readings[0][1] < 2 << 20
