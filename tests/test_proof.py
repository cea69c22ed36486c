"""The promise, with real sockets: every connection once, right direction, none else.

Truth is what the sockets' owners saw. The trace hears the whole machine, so only the tests' own ports count.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from tcpwatchd.kernel.setup import remove, set_up
from tcpwatchd.output import event
from tests.daemon import Daemon, run_program
from tests.holder import Traffic
from tests.mixed import PORT4
from tests.namespace import TRACING, Namespace, run, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.trace, pytest.mark.alone]
SERVER, CLIENT, SERVER6, CLIENT6 = "10.78.2.1", "10.78.2.2", "fd00:78:2::1", "fd00:78:2::2"
SERVER_PORTS = range(PORT4, PORT4 + 10)
CHURN_SECONDS = int(os.environ.get("CHURN_SECONDS", "20"))
Ends = tuple[str, int, str, int]


@pytest.fixture
def hosts() -> Iterator[tuple[Namespace, Namespace]]:
    """A server's network and a client's."""
    with Namespace() as server, Namespace() as client:
        client.join(CLIENT, server.pid, SERVER)
        for host, link, address in ((server, "ve1", SERVER6), (client, "ve0", CLIENT6)):
            run(*host.prefix, "ip", "address", "add", f"{address}/64", "dev", link, "nodad")
        yield server, client


def start(host: Namespace, output: IO[bytes], *flags: str, **options: Any) -> Daemon:
    everywhere = ("--output", "json", "--interval", "2")
    daemon = Daemon(*everywhere, *flags, prefix=host.prefix, stdout=output, **options)
    started = count(output, event.WATCH_STARTED)
    wait_until(lambda: count(output, event.WATCH_STARTED) > started, 10, "started")
    return daemon


def read(output: IO[bytes]) -> list[dict[str, Any]]:
    """What was written so far; the file stays where its writer left it."""
    size = os.fstat(output.fileno()).st_size
    lines = os.pread(output.fileno(), size, 0).splitlines()
    return [json.loads(line) for line in lines]


def count(output: IO[bytes], message_id: str) -> int:
    return sum(fields["MESSAGE_ID"] == message_id for fields in read(output))


def reported(output: IO[bytes], ports: Any = SERVER_PORTS) -> list[dict[str, Any]]:
    """Connections of which one end has one of these ports."""
    found = [fields for fields in read(output) if fields["MESSAGE_ID"] == event.CONNECTION_OPENED]
    return [f for f in found if int(f["DESTINATION_PORT"]) in ports or int(f["SOURCE_PORT"]) in ports]


def ends(fields: dict[str, Any]) -> Ends:
    return (
        fields["SOURCE_IP"],
        int(fields["SOURCE_PORT"]),
        fields["DESTINATION_IP"],
        int(fields["DESTINATION_PORT"]),
    )


def open_mixed(hosts: tuple[Namespace, Namespace], connections: int, seconds: int) -> Iterator[Counter[Ends]]:
    """Yield once when the traffic runs, then the truth."""
    server = Traffic(hosts[0].pid, "server", script="mixed.py")
    server.truth()
    plan = (str(connections), str(seconds), "15", "7")
    client = Traffic(hosts[1].pid, "client", SERVER, SERVER6, *plan, script="mixed.py")
    yield Counter()
    yield Counter(tuple(truth) for truth in client.truth())
    client.end()
    server.end()


def test_two_thousand_mixed_connections(hosts: tuple[Namespace, Namespace], output: IO[bytes]) -> None:
    daemon = start(hosts[0], output, "--trace", "require")
    truth = list(open_mixed(hosts, 2500, 20))[1]
    time.sleep(0.5)
    status, _, errors = daemon.end(signal.SIGTERM)
    found = reported(output)
    assert Counter(map(ends, found)) == truth
    assert {fields["NETWORK_DIRECTION"] for fields in found} == {"internal"}
    assert {fields["TCPWATCHD_DETECTED_BY"] for fields in found} == {"trace"}
    assert [fields["EVENT_START"] for fields in found] == sorted(fields["EVENT_START"] for fields in found)
    assert (status, errors) == (0, "")
    assert sum(truth.values()) >= 2000


def test_restarts_lose_nothing(
    hosts: tuple[Namespace, Namespace], output: IO[bytes], instance: str, tmp_path: Path
) -> None:
    """The instance is the service's: it goes on filling. What is open at a restart is known and not told."""
    steps = open_mixed(hosts, 1000, 10)
    daemon = run_on(hosts[0], output, instance, tmp_path)
    next(steps)
    for _ in range(5):
        time.sleep(1)
        daemon.end(signal.SIGTERM)
        time.sleep(0.5)
        daemon = run_on(hosts[0], output, instance, tmp_path)
    truth = next(steps)
    time.sleep(0.5)
    daemon.end(signal.SIGTERM)
    list(steps)
    assert Counter(map(ends, reported(output))) == truth


def test_a_kill_loses_nothing(
    hosts: tuple[Namespace, Namespace], output: IO[bytes], instance: str, tmp_path: Path
) -> None:
    """At most what was being written is written twice."""
    steps = open_mixed(hosts, 1000, 10)
    daemon = run_on(hosts[0], output, instance, tmp_path)
    next(steps)
    for _ in range(8):
        time.sleep(0.8)
        daemon.process.kill()
        daemon.process.communicate()
        daemon = run_on(hosts[0], output, instance, tmp_path)
    truth = next(steps)
    time.sleep(0.5)
    daemon.end(signal.SIGTERM)
    list(steps)
    found = Counter(map(ends, reported(output)))
    missing, twice = truth - found, found - truth
    assert sum(missing.values()) <= sum(
        int(f["TCPWATCHD_RECORDS_LOST"]) for f in told(output, event.RECORDS_LOST)
    )
    assert sum(twice.values()) <= 8 * 50


@pytest.fixture
def instance() -> Iterator[str]:
    made = set_up(f"tcpwatchd-test-{os.getpid()}", 512).path
    yield made
    remove(made)


def told(output: IO[bytes], message_id: str) -> list[dict[str, Any]]:
    return [fields for fields in read(output) if fields["MESSAGE_ID"] == message_id]


def run_on(host: Namespace, output: IO[bytes], instance: str, runtime: Path, *flags: str) -> Daemon:
    """As the service does: with the instance bound where it is looked for, and not removed at the end."""
    bind = 'mount -t tmpfs none /run && mkdir /run/tcpwatchd-trace && mount --bind "$0" /run/tcpwatchd-trace'
    inside = ["unshare", "--mount", "sh", "-c", f'{bind} && exec "$@"', instance]
    started = count(output, event.WATCH_STARTED)
    daemon = Daemon("--output", "json", "--interval", "2", "--trace", "require", *flags,
                    prefix=[*host.prefix, *inside], stdout=output,
                    env={**os.environ, "RUNTIME_DIRECTORY": str(runtime)})  # fmt: skip
    wait_until(lambda: count(output, event.WATCH_STARTED) > started, 10, "started")
    return daemon


def test_without_the_trace_what_was_missed_is_counted(
    hosts: tuple[Namespace, Namespace], output: IO[bytes]
) -> None:
    """By the kernel's own counters: with what is reported, they are the truth."""
    daemon = start(hosts[0], output, "--trace", "no")
    truth = list(open_mixed(hosts, 800, 20))[1]
    time.sleep(2.5)
    daemon.end(signal.SIGTERM)
    found = reported(output)
    missed = sum(int(f["TCPWATCHD_MISSED_INBOUND"]) for f in told(output, event.CONNECTIONS_MISSED))
    totals = read(output)[-1]
    assert not Counter(map(ends, found)) - truth
    assert missed > 0
    assert len(found) + missed == sum(truth.values())
    assert totals["TCPWATCHD_MISSED_INBOUND"] == str(missed)
    assert totals["TCPWATCHD_OPENED_INBOUND"] == str(len(found) + missed)
    assert totals["TCPWATCHD_REPORTED_POLL"] == str(len(found))


def test_reported_ignored_folded_and_missed_are_what_the_kernel_opened(
    hosts: tuple[Namespace, Namespace], output: IO[bytes], tmp_path: Path
) -> None:
    """As its counters have it, in the entry at the stop."""
    config = tmp_path / "x.conf"
    config.write_text("[Rules]\nIgnore=ip6\nFold=2/1h\n")
    daemon = start(hosts[0], output, "--trace", "no", "--config", str(config))
    truth = list(open_mixed(hosts, 200, 4))[1]
    time.sleep(2.5)
    daemon.end(signal.SIGTERM)
    names = "REPORTED", "IGNORED", "FOLDED", "MISSED_INBOUND"
    counts = {name: int(read(output)[-1][f"TCPWATCHD_{name}"]) for name in names}
    assert all(counts.values()), counts
    assert sum(counts.values()) == sum(truth.values()), counts
    assert read(output)[-1]["TCPWATCHD_OPENED_INBOUND"] == str(sum(truth.values()))


def test_churn(output: IO[bytes]) -> None:
    """All are reported, or what was lost is counted: connections cannot vanish unaccounted."""
    with Namespace() as host:
        daemon = start(host, output, "--trace", "require", "--trace-buffer", "8M", "--interval", "10")
        traffics = [Traffic(host.pid, "churn", "5000", str(CHURN_SECONDS)) for _ in range(2)]
        truths = [traffic.truth() for traffic in traffics]
        for traffic in traffics:
            traffic.end()
        settle(output)
        assert daemon.end(signal.SIGTERM)[0] == 0
    truth = Counter((client, server) for server, clients, _ in truths for client in clients)
    servers = {server for server, _, _ in truths}
    found = Counter((ends(fields)[1], ends(fields)[3]) for fields in reported(output, servers))
    missing = sum((truth - found).values())
    assert sum(truth.values()) == 10_000 * CHURN_SECONDS
    assert not found - truth
    assert int(read(output)[-1]["TCPWATCHD_RECORDS_LOST"]) >= 2 * missing


def settle(output: IO[bytes]) -> None:
    """Wait until nothing more is written for three seconds."""
    size, since = -1, time.monotonic()
    while time.monotonic() < since + 3:
        time.sleep(0.1)
        if os.fstat(output.fileno()).st_size != size:
            size, since = os.fstat(output.fileno()).st_size, time.monotonic()


def test_losses_are_told_and_polls_find_what_stays(output: IO[bytes]) -> None:
    """A small buffer, a daemon that is stopped meanwhile: records are lost, open connections are not."""
    with Namespace() as host:
        daemon = start(host, output, "--trace", "require", "--trace-buffer", "16K")
        daemon.process.send_signal(signal.SIGSTOP)
        stays = Traffic(host.pid, "many", "50")
        server, clients = stays.truth()
        short = Traffic(host.pid, "short", "2000")
        short.truth()
        daemon.process.send_signal(signal.SIGCONT)
        wait_until(lambda: len(reported(output, {server})) >= len(clients), 20, "those that stay")
        time.sleep(2.5)
        short.end()
        stays.end()
        daemon.end(signal.SIGTERM)
    found = Counter((ends(fields)[1], ends(fields)[3]) for fields in reported(output, {server}))
    assert found == Counter((client, server) for client in clients)
    lost = [f for f in read(output) if f["MESSAGE_ID"] == event.RECORDS_LOST]
    assert sum(int(f["TCPWATCHD_RECORDS_LOST"]) for f in lost) > 0
    totals = read(output)[-1]
    assert int(totals["TCPWATCHD_MISSED_TRACE"]) > 0


def test_a_record_is_reported_at_once(output: IO[bytes]) -> None:
    with Namespace() as host:
        daemon = start(host, output, "--trace", "require")
        traffic = Traffic(host.pid, "many", "1")
        server, _ = traffic.truth()
        told = time.monotonic()
        wait_until(lambda: reported(output, {server}), 5, "reported")
        late = time.monotonic() - told
        traffic.end()
        daemon.end(signal.SIGTERM)
    assert late < 1, "long before the next poll"


def test_a_record_never_waits_for_the_next_poll(output: IO[bytes]) -> None:
    """A record that is newer than the start of the drain that took it out is followed by the next drain."""
    with Namespace() as host:
        daemon = start(host, output, "--trace", "require", "--interval", "3600")
        traffic = Traffic(host.pid, "churn", "100", "6")
        server, clients, _ = traffic.truth()
        traffic.end()
        wait_until(lambda: len(reported(output, {server})) == len(clients), 2, "all reported")
        written = [json.loads(line) for line in os.pread(output.fileno(), 1 << 24, 0).splitlines()]
        daemon.end(signal.SIGTERM)
    assert written[-1]["MESSAGE_ID"] == event.CONNECTION_OPENED


def test_the_last_moments_before_a_stop(output: IO[bytes]) -> None:
    with Namespace() as host:
        for turn in range(1, 9):
            daemon = start(host, output, "--trace", "require", "--interval", "3600")
            before = count(output, event.CONNECTION_OPENED)
            traffic = Traffic(host.pid, "short", "40")
            server, clients = traffic.truth()
            daemon.end(signal.SIGINT)
            traffic.end()
            assert len(reported(output, {server})) == len(clients) == 40, f"turn {turn}"
            assert count(output, event.CONNECTION_OPENED) - before >= 40


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize(("call", "file"), [("pread64", "stats"), ("read", "trace_pipe_raw")])
def test_a_trace_that_cannot_be_read_for_a_while(output: IO[bytes], call: str, file: str) -> None:
    """Polls go on and find what stays; what the kernel held is reported later, and nothing twice."""
    instance = f"tcpwatchd-test-{os.getpid()}"
    paths = [arg for cpu in Path(TRACING, "per_cpu").iterdir()
             for arg in ("-P", f"{TRACING}/instances/{instance}/per_cpu/{cpu.name}/{file}")]  # fmt: skip
    with Namespace() as host:
        daemon = start(host, output, "--trace", "require", "--interval", "0.5", "--trace-instance", instance)
        inject = ["strace", "-qq", "-o", "/dev/null", *paths, "-e", f"inject={call}:error=EIO"]
        with subprocess.Popen([*inject, "-p", str(daemon.process.pid)], stderr=subprocess.DEVNULL) as strace:
            wait_until(lambda: is_traced(daemon.process.pid), 5, "strace is attached")
            # Reset at once, so that no row stays in the table.
            short = Traffic(host.pid, "churn", "100", "2")
            server, clients, _ = short.truth()
            staying = Traffic(host.pid, "many", "3")
            other, _clients = staying.truth()
            wait_until(lambda: len(reported(output, {other})) == 3, 5, "found by polls")
            assert {fields["TCPWATCHD_DETECTED_BY"] for fields in reported(output, {other})} == {"poll"}
            assert count(output, event.TRACE_FAILED) == 1
            assert count(output, event.TRACE_RECOVERED) == count(output, event.POLL_FAILED) == 0
            strace.terminate()
        wait_until(lambda: count(output, event.TRACE_RECOVERED) == 1, 5, "read again")
        wait_until(lambda: len(reported(output, {server})) == len(clients), 5, "all reported")
        status, _, errors = daemon.end(signal.SIGTERM)
        short.end()
        staying.end()
    assert (status, errors) == (0, "")
    assert len(reported(output, {other})) == 3
    assert sorted(int(f["SOURCE_PORT"]) for f in reported(output, {server})) == sorted(clients)
    assert count(output, event.RECORDS_LOST) == 0
    missed = sum(int(fields["TCPWATCHD_MISSED_INBOUND"]) for fields in told(output, event.CONNECTIONS_MISSED))
    assert 0 < missed <= len(clients)


def is_traced(pid: int) -> bool:
    """By a debugger or strace (proc(5): status)."""
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("trace", ["auto", "require"])
def test_without_privilege(output: IO[bytes], trace: str, tmp_path: Path) -> None:
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    errors = (tmp_path / "errors").open("w+")
    daemon = Daemon("--output", "json", "--trace", trace, prefix=drop, stdout=output, stderr=errors)
    if trace == "require":
        assert daemon.process.wait(timeout=10) == 2
        text = (tmp_path / "errors").read_text()
        assert text == "tcpwatchd: --trace require: only root can set the trace up\n"
        return
    wait_until(lambda: count(output, event.TRACE_UNAVAILABLE) == 1, 10, "said")
    daemon.end(signal.SIGTERM)
    assert count(output, event.TRACE_UNAVAILABLE) == 1


def test_a_root_that_may_nothing_polls(output: IO[bytes]) -> None:
    """As in a container of a user's own."""
    caps = "-dac_override,-dac_read_search,-sys_admin"
    script = f"""mount -t tmpfs -o mode=700,uid=65534 none /sys/kernel/tracing &&
    exec setpriv --bounding-set={caps} --inh-caps={caps} "$@\""""
    inside = ["unshare", "--mount", "sh", "-c", script, "sh"]
    daemon = Daemon("--output", "json", "--interval", "0.1", prefix=inside, stdout=output)
    wait_until(lambda: count(output, event.TRACE_UNAVAILABLE) == 1, 10, "said")
    assert told(output, event.TRACE_UNAVAILABLE)[0]["ERROR_MESSAGE"] == f"{TRACING}: Permission denied"
    assert daemon.end(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize("empty", ["", "mkdir -p /run/tcpwatchd-trace && "])
def test_tracefs_is_mounted_where_it_is_missing(output: IO[bytes], empty: str) -> None:
    """And a directory that the service left behind is no instance."""
    script = f'umount --lazy /sys/kernel/tracing; mount -t tmpfs none /run && {empty}exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", script, "sh"]
    daemon = Daemon(
        "--output", "json", "--interval", "0.1", "--trace", "require", prefix=inside, stdout=output
    )
    wait_until(lambda: count(output, event.TRACE_USED) == 1, 10, "said")
    assert daemon.end(signal.SIGTERM)[0] == 0


def test_in_a_time_namespace_times_are_right(output: IO[bytes]) -> None:
    with Namespace() as host:
        inside = [
            *host.prefix,
            "unshare",
            "--time",
            "--fork",
            "--kill-child",
            "--boottime",
            "100000",
            "--monotonic",
            "5",
        ]
        daemon = Daemon("--output", "json", "--trace", "require", prefix=inside, stdout=output)
        wait_until(lambda: count(output, event.TRACE_USED) == 1, 10, "said")
        traffic = Traffic(host.pid, "short", "3")
        server, _ = traffic.truth()
        wait_until(lambda: len(reported(output, {server})) == 3, 5, "all reported")
        traffic.end()
        daemon.process.kill()
        daemon.process.communicate()
    for fields in reported(output, {server}):
        opened = datetime.fromisoformat(fields["EVENT_START"].replace("Z", "+00:00"))
        assert abs(opened.timestamp() - time.time()) < 30


def test_a_kernel_without_tracing_is_told_in_a_line() -> None:
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/kernel && exec "$@"', "sh"]
    result = run_program("--trace", "require", prefix=hidden)
    assert (result.returncode, result.stdout) == (2, "")
    missing = "this kernel has no tracing: there is no /sys/kernel/tracing"
    assert result.stderr == f"tcpwatchd: --trace require: {missing}\n"


def test_a_baseline_that_cannot_be_kept_is_told_once(output: IO[bytes], tmp_path: Path) -> None:
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "none")}
    with Namespace() as host:
        daemon = Daemon("--output", "json", "--interval", "0.1", "--trace", "require",
                        prefix=host.prefix, stdout=output, env=environment)  # fmt: skip
        wait_until(lambda: count(output, event.KEEPING_FAILED) == 1, 10, "told")
        time.sleep(0.5)
        assert daemon.end(signal.SIGTERM)[0] == 0
    assert count(output, event.KEEPING_FAILED) == 1


def test_the_own_instance_is_removed_at_the_end(output: IO[bytes]) -> None:
    with Namespace() as host:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            daemon = start(host, output, "--trace", "require")
            instance = read(output)[-1]["MESSAGE"].rpartition("(")[2].partition(",")[0]
            assert os.path.isdir(instance)
            daemon.end(number)
            assert not os.path.exists(instance)


@pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="needs /dev/net/tun")
def test_directions_with_a_remote_that_is_no_socket_here(output: IO[bytes]) -> None:
    with Namespace() as host:
        daemon = start(host, output, "--trace", "require")
        traffic = Traffic(host.pid, "200", script="remote.py")
        truth = dict(zip(("egress", "ingress"), traffic.truth()))
        traffic.end()
        time.sleep(0.5)
        daemon.end(signal.SIGTERM)
    found = [fields for fields in reported(output, {80, 9000}) if "10.80.0.2" in ends(fields)]
    for direction, expected in truth.items():
        ours = Counter(ends(fields) for fields in found if fields["NETWORK_DIRECTION"] == direction)
        assert ours == Counter(map(tuple, expected))
    assert len(found) == 400
    assert {fields["TCPWATCHD_DETECTED_BY"] for fields in found} == {"trace"}


@pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="needs /dev/net/tun")
def test_a_fast_open_child_that_ends_before_its_handshake(output: IO[bytes]) -> None:
    """It exchanged data and is told once, by the trace. A handshake that was reset is no connection."""
    with Namespace() as host:
        daemon = start(host, output, "--trace", "require")
        traffic = Traffic(host.pid, script="fastopen.py")
        closed, _, _, within = traffic.truth()
        time.sleep(2.5)
        traffic.end()
        daemon.end(signal.SIGTERM)
    found = reported(output, {closed[3]})
    assert [ends(fields) for fields in found] == [tuple(closed), tuple(within)]
    assert [fields["NETWORK_DIRECTION"] for fields in found] == ["ingress", "internal"]
    assert [fields["TCPWATCHD_TCP_STATE"] for fields in found] == ["FIN_WAIT1", "ESTABLISHED"]
    assert {fields["TCPWATCHD_DETECTED_BY"] for fields in found} == {"trace"}


@pytest.mark.parametrize("trace", ["require", "no"])
def test_an_accepting_end_that_waits_for_data(output: IO[bytes], trace: str) -> None:
    """It is no end of its own, and the connection stays inside this machine."""
    with Namespace() as host:
        for address in ("10.81.0.1/24", "10.81.0.2/24"):
            run(*host.prefix, "ip", "address", "add", address, "dev", "lo")
        daemon = start(host, output, "--trace", trace)
        traffic = Traffic(host.pid, "defer", "10.81.0.1", "10.81.0.2")
        truth = traffic.truth()
        time.sleep(2.5)
        traffic.end()
        daemon.end(signal.SIGTERM)
    found = reported(output, {truth[3]})
    assert [ends(fields) for fields in found] == [tuple(truth)]
    assert [fields["NETWORK_DIRECTION"] for fields in found] == ["internal"]
