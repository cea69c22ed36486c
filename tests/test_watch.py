"""The loop, watched from outside: real processes, real sockets in a network namespace, or given tables."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.output import event
from tcpwatchd.watch import next_deadline
from tests.daemon import PROJECT, Daemon, run_program, with_proc
from tests.holder import Traffic
from tests.namespace import TRACING, Namespace, run, wait_until
from tests.table import endpoint4, replace, row, show, write_tables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.alone]
HOST, PEER = "10.78.0.1", "10.78.0.2"
FAST = ("--interval", "0.1", "--output", "json", "--trace", "no")


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made


def read_event(daemon: Daemon) -> dict[str, str]:
    fields: dict[str, str] = json.loads(daemon.read_line())
    return fields


def read_started(daemon: Daemon) -> None:
    assert read_event(daemon)["MESSAGE_ID"] == event.WATCH_STARTED


def test_real_connections_of_every_kind(namespace: Namespace) -> None:
    daemon = Daemon(*FAST, prefix=namespace.prefix)
    read_started(daemon)
    with Namespace() as peer:
        peer.join(PEER, namespace.pid, HOST)
        theirs = Traffic(peer.pid, "peer", PEER, HOST)
        ours = Traffic(namespace.pid, "each", PEER)
        truth = ours.truth()
        found = [read_event(daemon) for _ in truth]
        ours.end()
        theirs.end()
        time.sleep(0.5)
    status, rest, errors = daemon.end(signal.SIGTERM)
    kept = [{name: fields[name] for name in truth[0]} for fields in found]
    assert sorted(kept, key=repr) == sorted(truth, key=repr)
    assert (status, errors) == (0, "")
    (stopped,) = map(json.loads, rest.splitlines())
    assert (stopped["MESSAGE_ID"], stopped["TCPWATCHD_REPORTED"]) == (event.WATCH_STOPPED, str(len(truth)))


def test_half_open_connections_are_not_reported(namespace: Namespace) -> None:
    """Handshakes to an address that never answers."""
    ip = [*namespace.prefix, "ip"]
    run(*ip, "link", "add", "void", "type", "veth", "peer", "name", "hole")
    run(*ip, "address", "add", "10.79.0.1/24", "dev", "void")
    run(*ip, "link", "set", "void", "up")
    run(*ip, "link", "set", "hole", "up")
    daemon = Daemon(*FAST, prefix=namespace.prefix)
    read_started(daemon)
    connect = "exec 3<>/dev/tcp/10.79.0.9/80 & sleep 0.5; grep -c ' 02 ' /proc/self/net/tcp; kill $!"
    shown = subprocess.run(
        [*namespace.prefix, "bash", "-c", connect], capture_output=True, text=True, check=False
    )
    assert shown.stdout == "1\n"
    time.sleep(0.5)
    _, rest, _ = daemon.end(signal.SIGINT)
    missed, stopped = map(json.loads, rest.splitlines())
    assert stopped["TCPWATCHD_REPORTED"] == "0"
    assert missed["MESSAGE"].startswith("0 inbound connections and at most 1 outbound connection "), (
        "its program gave it up"
    )


def test_text_is_one_line_a_connection_and_flushed_into_a_pipe(proc: Path) -> None:
    show(proc, 5001)
    daemon = Daemon("--interval", "0.1", "--trace", "no", prefix=with_proc(proc))
    opened = "connection: 10.0.0.5:5001 -> 192.0.2.1:443"
    assert daemon.read_line()[19:] == f": Open {opened} (direction guessed)"
    show(proc, 5002)
    opened = "connection: 10.0.0.5:5002 -> 192.0.2.1:443"
    assert daemon.read_line()[19:] == f": New {opened} (direction guessed)"
    status, out, err = daemon.end(signal.SIGTERM)
    assert (status, out) == (0, "")
    assert err.splitlines()[-1] == "tcpwatchd: Stopped: 2 connections reported"


def test_once_reports_what_is_open_and_exits(proc: Path) -> None:
    show(proc, 5001, 5002)
    result = run_program("--once", "--output", "json", prefix=with_proc(proc))
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [fields["SOURCE_PORT"] for fields in found] == ["5001", "5002"]
    assert {fields["TCPWATCHD_DETECTED_BY"] for fields in found} == {"startup"}
    assert (result.returncode, result.stderr) == (0, "")


def test_a_kernel_without_ipv6_is_told_once(proc: Path) -> None:
    (proc / "self" / "net" / "tcp6").unlink()
    daemon = Daemon(*FAST, prefix=with_proc(proc))
    assert read_event(daemon)["MESSAGE"].endswith("; this kernel has no IPv6")
    write_tables(
        proc / "self" / "net", [row(0, endpoint4("10.0.0.5", 1), endpoint4("192.0.2.1", 2), 1, 3)], None
    )
    assert read_event(daemon)["SOURCE_PORT"] == "1"
    assert len(daemon.end(signal.SIGTERM)[1].splitlines()) == 1


def test_a_failed_poll_is_told_once_and_tried_again(proc: Path) -> None:
    daemon = Daemon(*FAST, prefix=with_proc(proc))
    read_started(daemon)
    table = proc / "self" / "net" / "tcp"
    table.rename(proc / "hidden")
    failed = read_event(daemon)
    assert failed["MESSAGE_ID"] == event.POLL_FAILED
    assert failed["ERROR_MESSAGE"] == "/proc/self/net/tcp: No such file or directory"
    time.sleep(1)
    (proc / "hidden").rename(table)
    assert read_event(daemon)["MESSAGE_ID"] == event.POLL_RECOVERED
    show(proc, 5001)
    assert read_event(daemon)["SOURCE_PORT"] == "5001"
    replace(table, "no header\n")
    assert "no header in the first line" in read_event(daemon)["ERROR_MESSAGE"]
    status, rest, _ = daemon.end(signal.SIGTERM)
    assert (status, len(rest.splitlines())) == (0, 1)
    assert int(json.loads(rest)["TCPWATCHD_FAILED_POLLS"]) >= 4


def test_malformed_rows_are_quoted_once_and_counted(proc: Path) -> None:
    daemon = Daemon(*FAST, prefix=with_proc(proc))
    read_started(daemon)
    write_tables(proc / "self" / "net", ["   0: some=\x1b[31mnonsense"], [])
    warned = read_event(daemon)
    assert warned["MESSAGE_ID"] == event.ROWS_MALFORMED
    assert "\\x1b[31mnonsense" in warned["MESSAGE"]
    time.sleep(1)
    write_tables(proc / "self" / "net", ["   0: other nonsense"], [])
    time.sleep(1)
    _, rest, _ = daemon.end(signal.SIGTERM)
    (stopped,) = map(json.loads, rest.splitlines())
    assert stopped["TCPWATCHD_MALFORMED_ROWS"] == "2"


def test_an_unreadable_table_at_the_start_is_a_fault(proc: Path) -> None:
    (proc / "self" / "net" / "tcp").unlink()
    result = run_program(prefix=with_proc(proc))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "tcpwatchd: /proc/self/net/tcp: No such file or directory\n"


def test_a_reader_that_goes_ends_it_quietly(proc: Path) -> None:
    daemon = Daemon("--interval", "3600", "--trace", "no", prefix=with_proc(proc))
    assert daemon.process.stdout
    assert daemon.process.stderr
    daemon.process.stderr.readline()
    daemon.process.stdout.close()
    assert daemon.process.wait(timeout=1) == 0
    assert daemon.process.stderr.read() == b""


@pytest.mark.parametrize("output", ["text", "json"])
def test_an_unwritable_output_is_a_fault(proc: Path, output: str) -> None:
    show(proc, 5001)
    with open("/dev/full", "w") as full:
        result = run_program("--output", output, prefix=with_proc(proc), capture_output=False, stdout=full,
                             stderr=subprocess.PIPE)  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.splitlines()[-2:] == [
        "tcpwatchd: 1 connection found and not written",
        "tcpwatchd: standard output: No space left on device",
    ]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("more", [("--once",), ()])
def test_a_full_disk_names_the_file_and_what_was_not_written(
    namespace: Namespace, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """4 KiB of disk for 200 connections."""
    holder = Traffic(namespace.pid, "many", "200")
    holder.truth()
    run("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", tmp_path)
    try:
        with (tmp_path / "out").open("wb") as out:
            result = run_program("--trace", "no", *more, prefix=namespace.prefix, capture_output=False,
                                 stdout=out, stderr=subprocess.PIPE)  # fmt: skip
        written = (tmp_path / "out").read_bytes().count(b"\n")
    finally:
        run("umount", tmp_path)
    assert result.returncode == 1
    assert 0 < written < 200
    assert result.stderr.splitlines()[-2:] == [
        f"tcpwatchd: {200 - written} connections found and not written",
        f"tcpwatchd: {tmp_path}/out: No space left on device",
    ]
    holder.end()


def test_what_a_full_disk_did_not_take_is_kept(proc: Path, tmp_path: Path) -> None:
    """Of several runtime directories the first is ours."""
    (tmp_path / "run").mkdir()
    environment = {**os.environ, "RUNTIME_DIRECTORY": f"{tmp_path}/run:{tmp_path}/other"}
    show(proc, 5001)
    with open("/dev/full", "w") as full:
        result = run_program(*FAST, prefix=with_proc(proc), env=environment, capture_output=False,
                             stdout=full, stderr=subprocess.PIPE)  # fmt: skip
    assert result.stderr == "tcpwatchd: standard output: No space left on device\n"
    assert (tmp_path / "run" / "baseline").exists()
    daemon = Daemon(*FAST, prefix=with_proc(proc), env=environment)
    read_started(daemon)
    assert read_event(daemon)["SOURCE_PORT"] == "5001"
    daemon.end(signal.SIGTERM)


def test_metrics_are_there_from_the_first_poll_to_the_last_word(proc: Path, tmp_path: Path) -> None:
    """And are not written by what reports once."""
    environment = {**os.environ, "RUNTIME_DIRECTORY": f"{tmp_path}"}
    file = tmp_path / "metrics/tcpwatchd.prom"
    run_program("--once", prefix=with_proc(proc), env=environment)
    assert not file.exists()
    show(proc, 5001)
    daemon = Daemon("--interval", "3600", *FAST[2:], prefix=with_proc(proc), env=environment)
    read_started(daemon)
    wait_until(file.exists, 10, "metrics")
    reported = re.compile(r'^tcpwatchd_connections_reported_total\{direction="egress"\} (\d+)$', re.MULTILINE)
    wait_until(lambda: reported.findall(file.read_text()) == ["1"], 10, "what was written since the poll")
    assert "tcpwatchd_entries_waiting 0\n" in file.read_text()
    assert "tcpwatchd_poll_interval_seconds 3600" in file.read_text()
    show(proc, 5001, 5002)
    assert daemon.end(signal.SIGTERM)[0] == 0
    assert reported.findall(file.read_text()) == ["2"], "the last poll is at the stop"


def test_an_empty_name_is_no_runtime_directory(proc: Path, tmp_path: Path) -> None:
    daemon = Daemon(*FAST, prefix=with_proc(proc), env={**os.environ, "RUNTIME_DIRECTORY": "",
                    "PYTHONPATH": str(PROJECT)}, cwd=tmp_path)  # fmt: skip
    read_started(daemon)
    daemon.end(signal.SIGTERM)
    assert not (tmp_path / "baseline").exists()


@pytest.mark.parametrize("standard_error", ["2>&-", "2>/dev/full", "2>$gone", "2>$stuck"])
def test_an_unusable_stderr_does_not_stop_stdout(proc: Path, tmp_path: Path, standard_error: str) -> None:
    """Closed, full, a pipe whose reader left, and one whose reader reads nothing."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    shell = f'gone={pipe}; stuck={pipe}; exec "$@" {standard_error}'
    if "stuck" in standard_error:
        with open(pipe, "wb", buffering=0) as writer:
            os.set_blocking(writer.fileno(), False)
            while writer.write(b"full" * 1024):
                pass
    daemon = Daemon("--interval", "0.1", "--trace", "no", prefix=[*with_proc(proc), "sh", "-c", shell, "sh"])
    if "gone" in standard_error:
        time.sleep(0.01)
        os.close(reader)
    for port in range(5001, 5005):
        show(proc, port)
        assert f" connection: 10.0.0.5:{port} -> 192.0.2.1:443" in daemon.read_line()
    hide = proc / "hidden"
    (proc / "self" / "net" / "tcp").rename(hide)
    time.sleep(0.3)
    hide.rename(proc / "self" / "net" / "tcp")
    show(proc, 5009)
    assert "5009 -> 192.0.2.1:443" in daemon.read_line()
    assert daemon.end(signal.SIGTERM)[0] == 0


def test_signals_that_were_ignored_stay_ignored(proc: Path) -> None:
    """As with nohup, and in the background of a script."""
    ignoring = ["sh", "-c", 'trap "" HUP INT; exec "$@"', "sh"]
    daemon = Daemon(*FAST, prefix=[*ignoring, *with_proc(proc)])
    read_started(daemon)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    show(proc, 5001)
    assert read_event(daemon)["SOURCE_PORT"] == "5001"
    assert daemon.end(signal.SIGTERM)[0] == 0


@pytest.mark.skipif(not TRACING.is_dir(), reason="needs a kernel with tracefs")
def test_an_instance_that_somebody_looks_into_is_no_fault(namespace: Namespace) -> None:
    instance = TRACING / "instances" / "tcpwatchd-looked-into"
    daemon = Daemon("--trace", "require", "--trace-instance", instance.name, *FAST[:4],
                    prefix=namespace.prefix)  # fmt: skip
    read_started(daemon)
    with (instance / "trace_pipe").open("rb"):
        status, _, errors = daemon.end(signal.SIGTERM)
    instance.rmdir()
    assert status == 0
    assert errors == f"tcpwatchd: {instance}: Device or resource busy; the instance stays\n"


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_closed_stdout_is_a_fault(proc: Path, output: str) -> None:
    closed = [*with_proc(proc), "sh", "-c", 'exec "$@" >&-', "sh"]
    result = run_program("--output", output, prefix=closed)
    assert result.returncode == 1
    assert result.stderr == "tcpwatchd: standard output: Bad file descriptor\n"


def test_no_journal_is_a_fault() -> None:
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "sh"]
    result = run_program("--output", "journal", prefix=hidden)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("package", "environment", "arguments"),
    [
        ("python3-systemd", {}, ("--output", "journal")),
        ("python3-sdnotify", {"NOTIFY_SOCKET": "/run/systemd/notify"}, ()),
    ],
)
def test_a_missing_module_names_its_package(
    package: str, environment: dict[str, str], arguments: tuple[str, ...]
) -> None:
    """Without site-packages there is neither."""
    command = [sys.executable, "-S", "-m", "tcpwatchd", "--once", *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=PROJECT, env=environment
    )
    assert result.returncode == 1
    assert f"install {package} " in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_permission_is_a_fault(proc: Path) -> None:
    (proc / "self" / "net").chmod(0o700)
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    result = run_program(prefix=[*with_proc(proc), *drop])
    assert result.returncode == 1
    assert result.stderr == "tcpwatchd: /proc/self/net/tcp: Permission denied\n"


def test_any_user_can_run_it(namespace: Namespace) -> None:
    holder = Traffic(namespace.pid, "many", "3")
    server, clients = holder.truth()
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    result = run_program("--once", prefix=[*namespace.prefix, *drop])
    ends = [line[19:] for line in result.stdout.splitlines()]
    assert sorted(ends) == sorted(f": Open connection: 127.0.0.1:{c} -> 127.0.0.1:{server}" for c in clients)
    holder.end()


def test_sighup_ends_it_in_the_foreground(proc: Path) -> None:
    daemon = Daemon(*FAST, prefix=with_proc(proc))
    read_started(daemon)
    assert daemon.end(signal.SIGHUP)[0] == -signal.SIGHUP


def test_a_signal_ends_a_burst(proc: Path) -> None:
    """What was found but not written is told."""
    many = 15_000
    daemon = Daemon(*FAST, prefix=with_proc(proc))
    read_started(daemon)
    show(proc, *range(1, many + 1))
    daemon.read_line()
    status, rest, _ = daemon.end(signal.SIGTERM)
    *reports, last = map(json.loads, rest.splitlines())
    assert status == 0
    assert int(last["TCPWATCHD_REPORTED"]) + int(last["TCPWATCHD_UNWRITTEN"]) == many
    assert len(reports) + 1 == int(last["TCPWATCHD_REPORTED"])


def test_polls_do_not_drift() -> None:
    """The n-th poll comes n intervals after the first, though each takes its time."""
    assert next_deadline(100.0, 100.2, 10.0) == 110.0
    assert next_deadline(100.0, 110.0, 10.0) == 120.0
    assert next_deadline(100.0, 135.5, 10.0) == 140.0
    assert next_deadline(100.0, 99.9, 10.0) == 100.0, "a poll that came early"


def test_no_wakeups_between_polls(proc: Path) -> None:
    daemon = Daemon("--interval", "3600", *FAST[2:], prefix=with_proc(proc))
    read_started(daemon)

    def wakeups() -> int:
        with open(f"/proc/{daemon.process.pid}/status") as status:
            return sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)

    wait_until(lambda: settled(wakeups), 10, "asleep")
    before = wakeups()
    time.sleep(1)
    assert wakeups() - before <= 1
    daemon.end(signal.SIGTERM)


def settled(count: object) -> bool:
    assert callable(count)
    before = count()
    time.sleep(0.1)
    return bool(count() == before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--\udcff"], "unrecognized arguments: --"),
        (["x\n<0>tcpwatchd: forged"], "unrecognized arguments: x\\n<0>tcpwatchd: forged"),
        (["--trace-buffer", "9" * 5000], "argument --trace-buffer: not a size from 16K to 16M: '999"),
        (["--interval", "1\n2"], "argument --interval: not a time span from 100ms to 1d: '1\\n2'"),
        (["--once", "--trace", "require"], "--trace require: not with --once"),
        (["--once", "--report", "both"], "--report both: not with --once"),
        (["--once", "--config", "\udcff\n"], "\\udcff\\n: No such file or directory"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: list[str], words: str) -> None:
    result = run_program(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"tcpwatchd: {words}")
    assert result.stderr.count("\n") == 1
