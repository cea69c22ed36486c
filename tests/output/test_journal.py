"""The journal while nobody reads it: a Debian tree's python-systemd and a journald that can be stopped."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.output import event
from tests.daemon import PROJECT, Daemon, run_program
from tests.fill_journal import LARGE, OFFERS
from tests.journald import Journald
from tests.namespace import run, wait_until
from tests.system.container import make_tree
from tests.table import show, write_counters

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.container, pytest.mark.alone]
MANY = 12_000
SHORT_QUEUE, LONG_QUEUE = 20, 2 * MANY
"""The second is longer than what the send buffer of a process without privilege holds."""
ENTER = """
mount -t tmpfs tmpfs "$0/run" && mkdir -p "$0/run/systemd/journal" "$0/run/kept" &&
mount --bind "$1" "$0/run/systemd/journal" && mount --bind "$2" "$0/run/kept" &&
mount --bind "$3" "$0/proc" && mount --bind "$4" "$0/mnt" && shift 5 &&
exec chroot "$0" setpriv --reuid 65534 --regid 65534 --clear-groups \
  env -i PYTHONPATH=/mnt PYTHONDONTWRITEBYTECODE=1 RUNTIME_DIRECTORY=/run/kept /usr/bin/python3 "$@"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With `kept`, which any user may write to, and `proc` to be /proc, with empty tables."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept").chmod(0o777)
    (tmp_path / "proc/self/net").mkdir(parents=True)
    write_counters(tmp_path / "proc/self/net")
    show(tmp_path / "proc")
    return tmp_path


@pytest.fixture(params=[SHORT_QUEUE, LONG_QUEUE], ids=["its queue is full", "the send buffer is full"])
def journald(request: pytest.FixtureRequest, folder: Path) -> Iterator[Journald]:
    with Journald(folder / "journal", request.param) as made:
        yield made


def enter(folder: Path) -> list[str]:
    """What comes after is run by the tree's own Python, but for its first word."""
    mounts = [folder / "journal", folder / "kept", folder / "proc", PROJECT]
    return ["unshare", "--mount", "sh", "-c", ENTER, *map(str, [make_tree("bookworm"), *mounts])]


def start(folder: Path) -> Daemon:
    return Daemon("--interval", "0.1", "--output", "journal", "--trace", "no", prefix=enter(folder))


def test_a_journald_that_stands_still_keeps_the_daemon_from_nothing(folder: Path, journald: Journald) -> None:
    """It polls, and stops when asked; what waited is written by the next, once."""
    daemon = start(folder)
    wait_until(lambda: journald.read(event.WATCH_STARTED), 10, "started")
    journald.stand_still()
    show(folder / "proc", *range(1, MANY + 1))
    time.sleep(2)
    show(folder / "proc", *range(1, MANY + 2))
    time.sleep(0.5)
    began = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    try:
        assert daemon.process.wait(timeout=10) == 0
    finally:
        daemon.process.kill()
        errors = daemon.process.communicate()[1]
    assert time.monotonic() - began < 2
    assert errors == b""
    journald.go_on()
    again = start(folder)
    wait_until(lambda: len(journald.read(event.CONNECTION_OPENED)) > MANY, 20, "all written")
    assert again.end(signal.SIGTERM)[0] == 0
    ports = [int(fields["SOURCE_PORT"]) for fields in journald.read(event.CONNECTION_OPENED)]
    assert ports == list(range(1, MANY + 2))


def test_one_that_goes_on_gets_all_of_it_once(folder: Path, journald: Journald) -> None:
    daemon = start(folder)
    wait_until(lambda: journald.read(event.WATCH_STARTED), 10, "started")
    journald.stand_still()
    show(folder / "proc", *range(1, MANY + 1))
    time.sleep(1)
    journald.go_on()
    wait_until(lambda: len(journald.read(event.CONNECTION_OPENED)) >= MANY, 20, "all written")
    assert daemon.end(signal.SIGTERM)[0] == 0
    ports = [int(fields["SOURCE_PORT"]) for fields in journald.read(event.CONNECTION_OPENED)]
    assert ports == list(range(1, MANY + 1))


def test_an_entry_that_is_too_large_for_the_socket_does_not_wait(folder: Path, journald: Journald) -> None:
    journald.stand_still()
    command = [*enter(folder), "-", "/mnt/tests/fill_journal.py"]
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout
        assert select.select([program.stdout], [], [], 10)[0], "blocked"
        took, refused, slowest = json.loads(program.stdout.readline())
        assert refused == [False] * OFFERS
        assert slowest < 0.5
        journald.go_on()
        program.communicate("\n", timeout=10)
        assert program.returncode == 0
    finally:
        program.kill()
        program.communicate()
    wait_until(lambda: len(journald.read(event.POLL_FAILED)) > took, 10, "all written")
    reasons = [fields["ERROR_MESSAGE"] for fields in journald.read(event.POLL_FAILED)]
    assert reasons == [*map(str, range(took)), LARGE]


def read_cpu(daemon: Daemon) -> float:
    """Seconds of processor time that it took so far."""
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_children() -> float:
    """Seconds of processor time that all those took that ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("harm", ["stands still", "is gone"])
def test_once_gives_up_and_says_what_it_could_not_write(folder: Path, harm: str) -> None:
    show(folder / "proc", *range(1, SHORT_QUEUE * 3))
    with Journald(folder / "journal", SHORT_QUEUE) as journald:
        journald.stand_still() if harm == "stands still" else journald.end()
        before, began = measure_children(), time.monotonic()
        result = run_program("--once", "--output", "journal", prefix=enter(folder))
    assert result.returncode == 1
    written = SHORT_QUEUE + 1 if harm == "stands still" else 0
    unwritten = SHORT_QUEUE * 3 - 1 - written
    assert result.stderr.splitlines() == [
        f"tcpwatchd: {unwritten} connections found and not written",
        "tcpwatchd: nothing was taken for 10 s",
    ]
    assert time.monotonic() - began > 9
    assert measure_children() - before < 2, "it does not spin"


def test_a_stop_while_the_journal_is_gone_does_not_spin(folder: Path) -> None:
    with Journald(folder / "journal", SHORT_QUEUE) as journald:
        daemon = start(folder)
        wait_until(lambda: journald.read(event.WATCH_STARTED), 10, "started")
        journald.end()
        show(folder / "proc", *range(1, 100))
        time.sleep(1)
        children, own = measure_children(), read_cpu(daemon)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(timeout=2) == 0
        assert measure_children() - children - own < 0.3
        assert daemon.process.communicate()[1] == b""


VANISH = """
import os
from tcpwatchd.output.event import poll_failed
from tcpwatchd.output.sinks import JOURNAL_SOCKET, JournalSink
sink = JournalSink()
assert sink.reach() and sink.is_ready() and sink.write(poll_failed("before", 0))
os.rename(JOURNAL_SOCKET, JOURNAL_SOCKET + ".away")
assert not (sink.is_ready() and sink.write(poll_failed("after", 0)))
assert not sink.reach()
os.rename(JOURNAL_SOCKET + ".away", JOURNAL_SOCKET)
assert sink.reach() and sink.is_ready() and sink.write(poll_failed("after", 0))
"""


def test_a_socket_that_vanishes_between_two_entries_takes_none(folder: Path) -> None:
    """libsystemd drops an entry there, and says nothing."""
    with Journald(folder / "journal", SHORT_QUEUE) as journald:
        journald.folder.chmod(0o777)
        run(*enter(folder), "-", "-c", VANISH)
        wait_until(lambda: len(journald.read(event.POLL_FAILED)) == 2, 5, "both written")
