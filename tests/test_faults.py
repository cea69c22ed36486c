"""What goes wrong around the daemon: readers that are slow, limits, failing system calls, late polls."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tcpwatchd.output import event
from tests.bench.figures import read_cpu
from tests.daemon import PROJECT, Daemon, with_proc
from tests.namespace import run, wait_until
from tests.table import show, write_counters
from tests.test_watch import FAST, read_event, read_started

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.alone]
MANY = 5000


@pytest.fixture
def daemon(proc: Path) -> Iterator[Daemon]:
    made = Daemon(*FAST, prefix=with_proc(proc))
    read_started(made)
    yield made
    made.process.kill()
    made.process.communicate()


def start_with(runtime: Path, proc: Path) -> Daemon:
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(runtime)}
    return Daemon(*FAST, prefix=with_proc(proc), env=environment)


def read_until(daemon: Daemon, message_id: str) -> list[dict[str, str]]:
    found = [read_event(daemon)]
    while found[-1]["MESSAGE_ID"] != message_id:
        found.append(read_event(daemon))
    return found


def test_a_reader_that_is_slow_gets_all_of_it_in_order(proc: Path, daemon: Daemon) -> None:
    show(proc, *range(1, MANY + 1))
    time.sleep(1)
    show(proc, *range(1, MANY + 2))
    time.sleep(1)
    ports = [int(read_event(daemon)["SOURCE_PORT"]) for _ in range(MANY + 1)]
    assert ports == list(range(1, MANY + 2))


def test_a_stuck_reader_does_not_keep_it_from_stopping(proc: Path, tmp_path: Path) -> None:
    """What was found is told on stderr where it cannot be kept, else written at the next start."""
    show(proc, *range(1, MANY + 1))
    for runtime in (None, tmp_path / "run"):
        environment = {**os.environ, **({"RUNTIME_DIRECTORY": str(runtime)} if runtime else {})}
        if runtime:
            runtime.mkdir()
        made = Daemon(*FAST, prefix=with_proc(proc), env=environment)
        read_started(made)
        time.sleep(1)
        began = time.monotonic()
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(timeout=3) == 0
        assert time.monotonic() - began < 2
        out, err = made.process.communicate()
        written = out.count(event.CONNECTION_OPENED.encode()) + made._rest.count(
            event.CONNECTION_OPENED.encode()
        )
        unwritten = MANY - written
        assert 0 < unwritten < MANY
        if not runtime:
            assert err.decode() == f"tcpwatchd: {unwritten} connections found and not written\n"
    again = Daemon(*FAST, prefix=with_proc(proc), env=environment)
    found = read_until(again, event.WATCH_STARTED)
    assert err == b""
    assert len([f for f in found if f["MESSAGE_ID"] == event.CONNECTION_OPENED]) == unwritten
    again.end(signal.SIGTERM)


def test_too_many_open_files(proc: Path, daemon: Daemon) -> None:
    limit(daemon, "--nofile=3:4096")
    assert read_event(daemon)["MESSAGE_ID"] == event.COUNTERS_FAILED
    failed = read_event(daemon)
    assert failed["MESSAGE_ID"] == event.POLL_FAILED
    assert "Too many open files" in failed["ERROR_MESSAGE"]
    show(proc, 5001)
    limit(daemon, "--nofile=1024:4096")
    found = read_until(daemon, event.POLL_RECOVERED)
    told = [event.COUNTERS_RECOVERED, event.CONNECTION_OPENED, event.POLL_RECOVERED]
    assert [fields["MESSAGE_ID"] for fields in found] == told


def limit(daemon: Daemon, value: str) -> None:
    run("prlimit", "--pid", str(daemon.process.pid), value)


@pytest.mark.parametrize("error", ["ENOMEM", "EIO"])
def test_reading_the_table_fails(proc: Path, daemon: Daemon, error: str) -> None:
    """Injected into the system call by strace."""
    table = "/proc/self/net/tcp"
    command = ["strace", "-qq", "-o", "/dev/null", "-P", table, "-e", f"inject=read:error={error}", "-p"]
    with subprocess.Popen([*command, str(daemon.process.pid)], stderr=subprocess.PIPE) as strace:
        failed = read_event(daemon)
        assert failed["MESSAGE_ID"] == event.POLL_FAILED
        strace.terminate()
    show(proc, 5001)
    wanted = {event.CONNECTION_OPENED, event.POLL_RECOVERED}
    while wanted:
        wanted.discard(read_event(daemon)["MESSAGE_ID"])
    assert daemon.end(signal.SIGTERM)[0] == 0


def test_a_poll_that_comes_late(proc: Path, daemon: Daemon) -> None:
    """As after a suspension: one poll, then the old rhythm."""
    daemon.process.send_signal(signal.SIGSTOP)
    show(proc, 5001)
    time.sleep(2)
    daemon.process.send_signal(signal.SIGCONT)
    assert read_event(daemon)["SOURCE_PORT"] == "5001"
    show(proc, 5001, 5002)
    assert read_event(daemon)["SOURCE_PORT"] == "5002"
    _, rest, _ = daemon.end(signal.SIGTERM)
    assert len(rest.splitlines()) == 1


def test_the_table_of_ipv6_goes_and_comes(proc: Path, daemon: Daemon) -> None:
    net = proc / "self" / "net"
    show(proc, 5001)
    assert read_event(daemon)["SOURCE_PORT"] == "5001"
    (net / "tcp6").rename(net / "hidden")
    time.sleep(0.3)
    (net / "hidden").rename(net / "tcp6")
    show(proc, 5001, 5002)
    assert read_event(daemon)["SOURCE_PORT"] == "5002"


def test_counters_that_vanish_fail_no_poll(proc: Path, daemon: Daemon) -> None:
    net = proc / "self" / "net"
    shutil.move(net / "snmp", net / "hidden")
    assert read_event(daemon)["ERROR_MESSAGE"] == "/proc/self/net/snmp: No such file or directory"
    shutil.move(net / "hidden", net / "snmp")
    assert read_event(daemon)["MESSAGE_ID"] == event.COUNTERS_RECOVERED


def test_short_connections_are_counted_by_the_kernels_counters(proc: Path, daemon: Daemon) -> None:
    write_counters(proc / "self" / "net", inbound=7, outbound=4)
    missed = read_event(daemon)
    assert missed["MESSAGE_ID"] == event.CONNECTIONS_MISSED
    assert (missed["TCPWATCHD_MISSED_INBOUND"], missed["TCPWATCHD_MISSED_OUTBOUND"]) == ("7", "4")
    totals: Any = json.loads(daemon.end(signal.SIGTERM)[1])
    assert (totals["TCPWATCHD_MISSED_INBOUND"], totals["TCPWATCHD_OPENED_OUTBOUND"]) == ("7", "4")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "not a baseline of this version: b''"),
        (b"tcpwatchd-baseline 9 00000000\n[]", "not a baseline of this version"),
        (b"tcpwatchd-baseline 1 00000000\n[]", "damaged: its checksum is another"),
        (None, "Is a directory"),
    ],
    ids=["empty", "version", "damaged", "unreadable"],
)
def test_a_spoilt_baseline_makes_a_first_start(
    proc: Path, tmp_path: Path, text: bytes | None, complaint: str
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir()
    if text is None:
        (runtime / "baseline").mkdir()
    else:
        (runtime / "baseline").write_bytes(text)
    show(proc, 5001)
    daemon = start_with(runtime, proc)
    unusable = read_event(daemon)
    assert unusable["MESSAGE_ID"] == event.BASELINE_UNUSABLE
    assert complaint in unusable["MESSAGE"]
    assert "\n" not in unusable["MESSAGE"]
    also = [fields["MESSAGE_ID"] for fields in read_until(daemon, event.WATCH_STARTED)[:-1]]
    assert also == ([event.KEEPING_FAILED] if text is None else []), "a directory cannot be replaced"
    assert read_event(daemon)["TCPWATCHD_DETECTED_BY"] == "startup"
    assert daemon.end(signal.SIGTERM)[0] == 0


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Path]:
    """A runtime directory of 64 KiB."""
    runtime = tmp_path / "run"
    runtime.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", runtime)
    yield runtime
    run("umount", runtime)


def test_a_full_runtime_directory_ends_nothing(proc: Path, narrow: Path) -> None:
    daemon = start_with(narrow, proc)
    read_started(daemon)
    show(proc, *range(1, MANY + 1))
    found = [read_event(daemon) for _ in range(MANY + 1)]
    assert [f["MESSAGE_ID"] for f in found].count(event.KEEPING_FAILED) == 1
    show(proc, *range(1, 10))
    assert read_event(daemon)["MESSAGE_ID"] == event.KEEPING_RECOVERED
    wait_until(lambda: b":0009 " in (narrow / "baseline").read_bytes(), 5, "saved again")
    daemon.process.kill()
    daemon.process.communicate()
    daemon = start_with(narrow, proc)
    read_started(daemon)
    show(proc, *range(1, 11))
    assert read_event(daemon)["SOURCE_PORT"] == "10"
    daemon.end(signal.SIGTERM)


def test_what_cannot_be_kept_is_told_once_and_so_is_that_it_is_kept_again(proc: Path, narrow: Path) -> None:
    """Nothing stays open and nothing stays behind, at whatever number of polls."""
    daemon = start_with(narrow, proc)
    read_started(daemon)
    opened = Path(f"/proc/{daemon.process.pid}/fd")
    before = len(list(opened.iterdir()))
    for _ in range(2):
        show(proc, *range(1, MANY + 1))
        found = [read_event(daemon) for _ in range(MANY + 1)]
        (told,) = (f for f in found if f["MESSAGE_ID"] != event.CONNECTION_OPENED)
        assert told["MESSAGE_ID"] == event.KEEPING_FAILED
        assert told["ERROR_MESSAGE"] == f"{narrow}/baseline.new: No space left on device"
        assert "cannot be used" not in told["MESSAGE"]
        time.sleep(1)
        wait_until(lambda: len(list(opened.iterdir())) <= before, 5, "nothing stays open")
        show(proc)
        assert read_event(daemon)["MESSAGE_ID"] == event.KEEPING_RECOVERED
    assert {path.name.partition(".")[0] for path in narrow.iterdir()} == {"baseline", "log", "metrics"}
    assert len(list(narrow.iterdir())) == 3
    assert [path.name for path in (narrow / "metrics").iterdir()] == ["tcpwatchd.prom"]
    assert len(daemon.end(signal.SIGTERM)[1].splitlines()) == 1


def test_what_cannot_be_cleaned_up_loses_nothing(proc: Path, tmp_path: Path) -> None:
    """The marks of what was written count from the last baseline, not from the one before."""
    (tmp_path / "run" / "log.of another").mkdir(parents=True)
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "run")}
    show(proc, 1, 2, 3)
    daemon = Daemon("--interval", "2", *FAST[2:], prefix=with_proc(proc), env=environment)
    read_until(daemon, event.WATCH_STARTED)
    found = [read_event(daemon) for _ in range(3)]
    show(proc, *range(1, MANY + 1))
    found.append(read_event(daemon))
    time.sleep(0.5)
    daemon.process.kill()
    assert daemon.process.stdout
    rest = daemon._rest + daemon.process.stdout.read()
    found += map(json.loads, rest.splitlines())
    daemon = start_with(tmp_path / "run", proc)
    found += read_until(daemon, event.WATCH_STARTED)
    daemon.end(signal.SIGTERM)
    ports = [int(f["SOURCE_PORT"]) for f in found if f["MESSAGE_ID"] == event.CONNECTION_OPENED]
    assert sorted(ports) == list(range(1, MANY + 1))


@pytest.mark.parametrize("missing", ["netstat", "snmp"])
def test_without_counters_all_else_works(proc: Path, missing: str) -> None:
    """A kernel or a container without them: told once, and when they are there again."""
    (proc / "self" / "net" / missing).rename(proc / "hidden")
    made = Daemon(*FAST, prefix=with_proc(proc))
    found = read_until(made, event.COUNTERS_FAILED)
    show(proc, 5001)
    found += read_until(made, event.CONNECTION_OPENED)
    time.sleep(0.5)
    (proc / "hidden").rename(proc / "self" / "net" / missing)
    found += read_until(made, event.COUNTERS_RECOVERED)
    status, out, _ = made.end(signal.SIGTERM)
    kinds = [fields["MESSAGE_ID"] for fields in found]
    assert (kinds.count(event.COUNTERS_FAILED), status, len(out.splitlines())) == (1, 0, 1)


def test_an_early_poll_that_cures_nothing_does_not_spin(proc: Path, tmp_path: Path) -> None:
    """The log is over its limit and cannot be replaced: at most one poll a second, and drains go on."""
    runtime = tmp_path / "run"
    runtime.mkdir()
    code = "import sys; from tcpwatchd.state import store; store.MOST_LOG = 0; " \
           "from tcpwatchd.__main__ import main; sys.exit(main())"  # fmt: skip
    command = [*with_proc(proc), sys.executable, "-c", code, "--interval", "600", *FAST[2:]]
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(runtime)}
    with subprocess.Popen(command, env=environment, cwd=PROJECT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        before = read_cpu(process.pid)
        polls = count_polls(process.pid, 4)
        took = read_cpu(process.pid) - before
        process.send_signal(signal.SIGTERM)
    assert 1 <= polls <= 5
    assert took < 1


def count_polls(pid: int, seconds: int) -> int:
    """How often it opens the table."""
    command = ["timeout", str(seconds), "strace", "-qq", "-e", "trace=openat", "-P", "/proc/self/net/tcp"]
    said = subprocess.run([*command, "-p", str(pid)], check=False, capture_output=True, text=True).stderr
    return said.count('/proc/self/net/tcp"')
