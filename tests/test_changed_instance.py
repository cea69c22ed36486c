"""Somebody who traces as root changes the instance while it is read: nothing is lost in silence."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from typing import IO, TYPE_CHECKING

import pytest

from tcpwatchd.kernel.instance import (
    TRACEPOINT,
    TRACING,
    list_settings,
    open_to_all,
    read_file,
    write_file,
)
from tcpwatchd.kernel.setup import remove, set_up
from tcpwatchd.output import event
from tests.holder import Traffic
from tests.namespace import Namespace, wait_until
from tests.test_proof import count, reported, start, told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon import Daemon

STARTED: list[Daemon] = []
pytestmark = [pytest.mark.trace, pytest.mark.alone]
NAME = f"tcpwatchd-tests-{os.getpid()}"
HARMFUL = {
    "tracing_on": "0",
    "trace_clock": "local",
    f"{TRACEPOINT}/enable": "0",
    f"{TRACEPOINT}/filter": "protocol==7",
    "set_event_pid": "1",
    "tracing_cpumask": "1",
    "options/pause-on-trace": "1",
}
HARMLESS = {
    "options/stacktrace": "1",
    "options/overwrite": "0",
    "options/raw": "1",
    "events/sched/sched_switch/enable": "1",
    "buffer_percent": "50",
}
VALUES = ("1", "0", "4", "", "function", "local", "sched", "traceoff", "sport==1", "nonsense")
"""Written to any file, one after the other: the kernel refuses what it does not know."""
ELSEWHERE = ("events/", "per_cpu/", "options/")
"""Folders of which only a few files matter here."""
TOLD = (
    event.CONNECTIONS_UNTOLD,
    event.TRACE_CHANGED,
    event.TRACE_GAP,
    event.TRACE_FAILED,
    event.RECORDS_LOST,
    event.CONNECTIONS_MISSED,
)
AS_THE_SERVICE = """mount -t tmpfs none /run && mkdir /run/tcpwatchd-trace &&
mount --bind "$0" /run/tcpwatchd-trace && mkdir /run/kept && chmod 777 /run/kept &&
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made
        end_all()


@pytest.fixture
def path() -> Iterator[str]:
    made = set_up(NAME, 512).path
    open_to_all(made, TRACEPOINT)
    yield made
    end_all()
    remove(made)


def end_all() -> None:
    """Also after a test that failed, or the instance would stay."""
    for daemon in STARTED:
        daemon.process.kill()
        daemon.process.communicate()
    STARTED.clear()


class AsTheService(Namespace):
    """A network whose programs have no privilege and see the instance where the service does."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.inside = self.prefix
        self.prefix = [*self.prefix, "unshare", "--mount", "sh", "-c", AS_THE_SERVICE, path]


def open_reset(host: Namespace, count: int = 20) -> int:
    """So many a second for two seconds, which leave no row; the server's port."""
    traffic = Traffic(host.pid, "churn", str(max(100, count)), "1")
    server, _, _ = traffic.truth()
    traffic.end()
    return int(server)


def watch(host: Namespace, output: IO[bytes], *flags: str) -> Daemon:
    STARTED.append(start(host, output, "--trace", "require", *flags))
    return STARTED[-1]


def finish(daemon: Daemon, output: IO[bytes]) -> None:
    STARTED.remove(daemon)
    status, _, errors = daemon.end(signal.SIGTERM)
    assert (status, errors) == (0, "")
    assert count(output, event.POLL_FAILED) == 0


@pytest.mark.parametrize("file", HARMFUL)
def test_it_is_repaired_in_the_foreground(host: Namespace, output: IO[bytes], file: str) -> None:
    daemon = watch(host, output, "--trace-instance", NAME, "--interval", "0.5")
    path = f"{TRACING}/instances/{NAME}"
    write_file(path, file, HARMFUL[file])
    wait_until(lambda: count(output, event.TRACE_GAP) == 1, 5, "repaired")
    server = open_reset(host)
    wait_until(lambda: len(reported(output, {server})) == 100, 5, "all reported")
    assert count(output, event.TRACE_CHANGED) == 1
    assert {fields["TCPWATCHD_DETECTED_BY"] for fields in reported(output, {server})} == {"trace"}
    finish(daemon, output)


@pytest.mark.parametrize("file", HARMFUL)
def test_the_service_polls_until_it_is_right_again(output: IO[bytes], path: str, file: str) -> None:
    with AsTheService(path) as host:
        daemon = watch(host, output, "--interval", "0.5")
        write_file(path, file, HARMFUL[file])
        wait_until(lambda: count(output, event.TRACE_CHANGED) == 1, 5, "noticed")
        unseen = open_reset(host)
        time.sleep(1.5)
        assert count(output, event.TRACE_GAP) == 0
        was = list_settings(TRACEPOINT)[file]
        write_file(path, file, "3" if was == "all" else was)
        wait_until(lambda: count(output, event.TRACE_GAP) == 1, 5, "right again")
        server = open_reset(host)
        wait_until(lambda: len(reported(output, {server})) == 100, 5, "all reported")
        finish(daemon, output)
    missed = sum(int(fields["TCPWATCHD_MISSED_INBOUND"]) for fields in told(output, event.CONNECTIONS_MISSED))
    assert missed + len(reported(output, {unseen})) >= 100
    (gap,) = told(output, event.TRACE_GAP)
    assert gap["EVENT_START"] < gap["EVENT_END"]


@pytest.mark.parametrize("file", HARMLESS)
def test_what_does_no_harm(output: IO[bytes], path: str, file: str) -> None:
    """Entries of other kinds and of other events are passed over, and no record is lost for them."""
    was = read_file(path, file)
    with AsTheService(path) as host:
        daemon = watch(host, output, "--interval", "0.5")
        write_file(path, file, HARMLESS[file])
        server = open_reset(host)
        wait_until(lambda: len(reported(output, {server})) == 100, 5, "all reported")
        write_file(path, file, was)
        finish(daemon, output)
    assert count(output, event.RECORDS_LOST) == count(output, event.TRACE_CHANGED) == 0


@pytest.mark.parametrize("file", ["buffer_size_kb", "per_cpu/cpu0/buffer_size_kb", "buffer_subbuf_size_kb"])
def test_buffers_get_their_size_back_in_the_foreground(host: Namespace, output: IO[bytes], file: str) -> None:
    daemon = watch(host, output, "--trace-instance", NAME, "--interval", "0.5")
    path = f"{TRACING}/instances/{NAME}"
    if not os.path.exists(f"{path}/{file}"):
        pytest.skip("this kernel has no pages of other sizes")
    was = read_file(path, file)
    write_file(path, file, "8")
    wait_until(lambda: count(output, event.TRACE_GAP) == 1, 5, "repaired")
    assert read_file(path, file) == was
    server = open_reset(host)
    wait_until(lambda: len(reported(output, {server})) == 100, 5, "all reported")
    finish(daemon, output)


def test_a_flood_of_other_events_ends_and_hides_nothing(output: IO[bytes], path: str) -> None:
    """Each reading makes records faster than they can be read."""
    with AsTheService(path) as host:
        daemon = watch(host, output, "--interval", "60")
        write_file(path, "events/raw_syscalls/enable", "1")
        server = open_reset(host)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(2) == 0
        write_file(path, "events/raw_syscalls/enable", "0")
        STARTED.remove(daemon)
    lost = sum(int(fields["TCPWATCHD_RECORDS_LOST"]) for fields in told(output, event.RECORDS_LOST))
    assert len(reported(output, {server})) == 100 or lost
    assert count(output, event.RECORDS_LOST) < 10, "summed up"


def test_buffers_that_are_emptied(output: IO[bytes], path: str) -> None:
    with AsTheService(path) as host:
        daemon = watch(host, output, "--interval", "0.5")
        server = open_reset(host)
        wait_until(lambda: len(reported(output, {server})) == 100, 5, "all reported")
        write_file(path, "trace", "")
        server = open_reset(host)
        wait_until(lambda: count(output, event.TRACE_GAP) == 1, 5, "noticed")
        server = open_reset(host)
        wait_until(lambda: len(reported(output, {server})) == 100, 5, "all reported")
        finish(daemon, output)


def test_dropped_records_are_counted(output: IO[bytes], path: str) -> None:
    """With options/overwrite off the newest are dropped, and the kernel counts them elsewhere."""
    write_file(path, "buffer_size_kb", "8")
    with AsTheService(path) as host:
        daemon = watch(host, output, "--interval", "3600")
        write_file(path, "options/overwrite", "0")
        daemon.process.send_signal(signal.SIGSTOP)
        server = open_reset(host, 2000)
        daemon.process.send_signal(signal.SIGCONT)
        wait_until(lambda: count(output, event.RECORDS_LOST) >= 1, 5, "told")
        open_reset(host)
        finish(daemon, output)
    lost = sum(int(fields["TCPWATCHD_RECORDS_LOST"]) for fields in told(output, event.RECORDS_LOST))
    assert 0 < len(reported(output, {server})) < 2000
    assert lost >= 3 * 2000 - 3 * len(reported(output, {server}))


def list_files(path: str) -> list[str]:
    """What root may write to, but for other events and all CPUs but one; all options are one."""
    found = []
    for folder, _, names in os.walk(path):
        files = [os.path.relpath(os.path.join(folder, name), path) for name in names]
        found += [file for file in files if os.stat(os.path.join(path, file)).st_mode & stat.S_IWUSR]
    kept = [file for file in found if file.startswith((f"{TRACEPOINT}/", "per_cpu/cpu0/"))]
    kept += [file for file in found if not file.startswith(ELSEWHERE)]
    return [*sorted(kept), "events/enable", "events/sock/enable", "events/sock/filter", "options/*"]


def change(path: str, file: str) -> None:
    files = [f"options/{name}" for name in os.listdir(f"{path}/options")] if file == "options/*" else [file]
    for name in files:
        for value in ("1" if read_file(path, name) == "0" else "0",) if len(files) > 1 else VALUES:
            with contextlib.suppress(OSError):
                write_file(path, name, value)


def test_whatever_root_writes_to_any_file(output: IO[bytes]) -> None:
    """All connections are told, or that something may be missing."""
    silent = []
    files = list_files(set_up(NAME, 512).path)
    remove(f"{TRACING}/instances/{NAME}")
    for file in files:
        path = set_up(NAME, 512).path
        open_to_all(path, TRACEPOINT)
        output.seek(0)
        output.truncate()
        with AsTheService(path) as host:
            daemon = watch(host, output, "--interval", "0.5")
            change(path, file)
            server = open_reset(host)
            finish(daemon, output)
        remove(path)
        if len(reported(output, {server})) < 100 and not any(count(output, kind) for kind in TOLD):
            silent.append(file)
    assert silent == []
