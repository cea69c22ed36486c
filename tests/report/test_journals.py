"""Real files of the journal: what is in the period, whole or damaged, beside what journalctl says of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tcpwatchd.output import event
from tests.report.journals import TRUSTED, export, write_journal
from tests.report.program import (
    BEGIN,
    COMMAND,
    ENVIRONMENT,
    PYTHON,
    SECOND,
    format_at,
    open_at,
    read_report,
    run_report,
    write_many,
)

pytestmark = pytest.mark.journals
MANY = 300
FIRST_BOOT, SECOND_BOOT = "a" * 32, "b" * 32
ANSWER = """
import json, os, sys
from tcpwatchd.failure import Failure
from tcpwatchd.report import journals
for line in sys.stdin:
    folder, since, until = json.loads(line)
    try:
        found = journals.Journals(journals.Place(folder))
        read = [written for written, _ in found.read(since, until, None)]
        told = found.faults
        for file in found.files:
            os.close(file.descriptor)
    except Failure as failure:
        read, told = [], [str(failure)]
    print(json.dumps([read, told]), flush=True)
"""


class Reader:
    """Reads folders one after the other, in one process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [PYTHON, "-c", ANSWER], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self, folder: Path, since: int = 0, until: int = 1 << 62) -> tuple[list[int], list[str]]:
        """When each entry was written, and what is told."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([str(folder), since, until]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"it ended with status {self._process.wait()}"
        read, told = json.loads(answer)
        return read, told

    def close(self) -> None:
        self._process.communicate(timeout=10)


@pytest.fixture(scope="module")
def reader() -> Any:
    made = Reader()
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with an entry each second."""
    return write_many(tmp_path_factory.mktemp("whole") / "a.journal", MANY)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """With a copy of it that can be damaged."""
    shutil.copy(whole, tmp_path / "a.journal")
    return tmp_path


def ask_journalctl(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    command = ["journalctl", "-q", "-D", str(folder), "-o", "json", "-t", "tcpwatchd", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return [json.loads(line) for line in done.stdout.splitlines()]


# Which entries.


@pytest.mark.parametrize(
    ("since", "until"),
    [(BEGIN, BEGIN), (BEGIN + 1, BEGIN + SECOND), (BEGIN + 10 * SECOND, BEGIN + 20 * SECOND),
     (BEGIN + 10 * SECOND + 1, BEGIN + 20 * SECOND - 1), (BEGIN - SECOND, BEGIN + 999 * SECOND),
     (BEGIN + 299 * SECOND, BEGIN + 300 * SECOND), (BEGIN + 299 * SECOND + 1, BEGIN + 300 * SECOND)],
)  # fmt: skip
def test_a_period_is_exact_to_the_microsecond(whole: Path, reader: Reader, since: int, until: int) -> None:
    expected = [moment for moment in range(BEGIN, BEGIN + MANY * SECOND, SECOND) if since <= moment <= until]
    assert reader.read(whole.parent, since, until) == (expected, [])


def test_periods_are_those_of_journalctl(whole: Path) -> None:
    since, until = BEGIN + 100 * SECOND + 7, BEGIN + 200 * SECOND
    period = [f"--since={format_at(since)}", f"--until={format_at(until)}"]
    told = read_report("-D", whole.parent, *period)
    assert told["connections"]["all"] == len(ask_journalctl(whole.parent, *period)) == 100
    assert (told["since"], told["until"]) == (event.format_utc(since), event.format_utc(until))


def test_several_files_are_one_history_in_order(tmp_path: Path, reader: Reader) -> None:
    (tmp_path / "deeper").mkdir()
    for number, path in enumerate(("z.journal", "a@1-2.journal", "m.journal~", "deeper/b.journal")):
        write_many(tmp_path / "made.journal", 10, BEGIN + number * 10 * SECOND)
        (tmp_path / "made.journal").rename(tmp_path / path)
    (tmp_path / "notes.txt").write_text("no journal")
    assert reader.read(tmp_path) == ([BEGIN + index * SECOND for index in range(40)], [])
    assert read_report("-D", tmp_path)["connections"]["all"] == 40


def test_entries_of_others_are_not_read(tmp_path: Path) -> None:
    events = [open_at(BEGIN + index * SECOND) for index in range(6)]
    unknown = {name: text for name, text in TRUSTED.items() if name != "_SYSTEMD_UNIT"}
    entries = [
        export(events[0]),
        export(events[1], {**TRUSTED, "_SYSTEMD_UNIT": "evil.service"}),
        export(events[2], unknown),
        export(events[3], {**TRUSTED, "SYSLOG_IDENTIFIER": "sshd"}),
        export(events[4], {**TRUSTED, "_SYSTEMD_UNIT": "mine.service"}),
        export(events[5]),
    ]
    write_journal(tmp_path / "a.journal", entries)
    told = read_report("-D", tmp_path)
    assert told["connections"]["all"] == 3
    assert told["not_counted"]["entries_of_other_units"] == 2
    assert told["doubtful"]["entries_of_unknown_units"] == 1
    assert read_report("-D", tmp_path, "-u", "mine.service")["connections"]["all"] == 1


def test_boots_are_those_of_journalctl(tmp_path: Path) -> None:
    entries = [
        export(open_at(BEGIN + index * SECOND), {**TRUSTED, "_BOOT_ID": boot})
        for boot, numbers in ((FIRST_BOOT, range(30)), (SECOND_BOOT, range(30, 50)))
        for index in numbers
    ]
    write_journal(tmp_path / "a.journal", entries)
    for boot, number in {
        "0": 20,
        "-1": 30,
        "1": 30,
        "2": 20,
        FIRST_BOOT: 30,
        SECOND_BOOT.upper(): 20,
    }.items():
        told = read_report("-D", tmp_path, "-b", boot)
        assert told["connections"]["all"] == number
        assert len(ask_journalctl(tmp_path, "-b", boot.lower())) == number
        begin = BEGIN if number == 30 else BEGIN + 30 * SECOND
        assert told["since"] == event.format_utc(begin)
        assert told["until"] == event.format_utc(begin + (number - 1) * SECOND)
    assert read_report("-D", tmp_path, "-b")["connections"]["all"] == 20
    assert read_report("-D", tmp_path, "-b", "dst port 443")["connections"]["all"] == 20
    for boot in "3", "-2", "c" * 32:
        done = run_report("-D", tmp_path, "-b", boot)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("tcpwatchd-report: argument -b: the journal has ")


def test_a_clock_that_was_set_back_hides_nothing(tmp_path: Path, reader: Reader) -> None:
    """Journald begins another file then."""
    write_many(tmp_path / "a.journal", 50)
    write_many(tmp_path / "b.journal", 50, BEGIN - 20 * SECOND)
    since, until = BEGIN + 5 * SECOND, BEGIN + 15 * SECOND
    read, told = reader.read(tmp_path, since, until)
    assert (sorted(read), told) == (sorted([since + index * SECOND for index in range(11)] * 2), [])
    done = read_report("-D", tmp_path)
    assert done["connections"]["all"] == 70, "what both have is the same"
    assert done["since"] == event.format_utc(BEGIN - 20 * SECOND)
    assert done["until"] == event.format_utc(BEGIN + 49 * SECOND)


def test_a_clock_that_was_set_back_to_before_the_file_began(tmp_path: Path, reader: Reader) -> None:
    moments = [BEGIN + index * SECOND for index in (*range(20), *range(-100, -80))]
    write_journal(tmp_path / "a.journal", [export(open_at(moment)) for moment in moments])
    assert reader.read(tmp_path) == (moments, [])
    for since, until in (BEGIN, BEGIN + 99 * SECOND), (BEGIN - 100 * SECOND, BEGIN - 90 * SECOND):
        expected = [moment for moment in moments if since <= moment <= until]
        assert reader.read(tmp_path, since, until) == (expected, [])
    assert read_report("-D", tmp_path)["connections"]["all"] == 40


# Peers seen for the first time.


def test_first_seen_are_those_that_no_entry_from_before_names(tmp_path: Path) -> None:
    rng, entries, moments = random.Random(1), [], []
    for index in range(400):
        peer = f"192.0.2.{rng.randrange(1, 60 + index // 3)}"
        direction = rng.choice(["ingress", "egress"])
        moment = BEGIN + index * SECOND
        made = open_at(moment, peer) if direction == "ingress" else open_at(moment, peer, "ingress")
        moments.append((moment, peer))
        entries.append(export(made))
    write_journal(tmp_path / "a.journal", entries[:150])
    write_journal(tmp_path / "b.journal", entries[150:])
    for since in 1, 100, 150, 220, 399:
        begin = BEGIN + since * SECOND
        before = {peer for moment, peer in moments if moment < begin}
        new = {peer for moment, peer in moments if moment >= begin} - before
        told = read_report("-D", tmp_path, "--since", format_at(begin), "-n", "1000")["first_seen"]
        assert {one["name"] for one in told["peers"]} == new
        assert (told["number"], told["compared_since"]) == (len(new), event.format_utc(BEGIN))
    assert read_report("-D", tmp_path)["first_seen"] == {
        "compared_since": None,
        "number": 0,
        "is_least": False,
        "peers": [],
    }


@pytest.mark.parametrize("files", [1, 2])
def test_nobody_else_makes_a_peer_known(tmp_path: Path, files: int) -> None:
    """Not who is about to call, and has its address written into the journal before."""
    forged = [
        export(open_at(BEGIN + 1, "203.0.113.9"), {**TRUSTED, "_SYSTEMD_UNIT": "evil.service"}),
        export(open_at(BEGIN + 2, "203.0.113.9"), {**TRUSTED, "SYSLOG_IDENTIFIER": "logger", "_UID": "1000"}),
    ]
    before = [export(open_at(BEGIN, "192.0.2.1")), *forged]
    after = [
        export(open_at(BEGIN + (9 + n) * SECOND, peer)) for n, peer in enumerate(("203.0.113.9", "192.0.2.1"))
    ]
    if files == 1:
        write_journal(tmp_path / "a.journal", before + after)
    else:
        write_journal(tmp_path / "a.journal", before)
        write_journal(tmp_path / "b.journal", after)
    told = read_report("-D", tmp_path, "--since", format_at(BEGIN + 9 * SECOND))
    assert [one["name"] for one in told["first_seen"]["peers"]] == ["203.0.113.9"]


# Where journals are.


def test_journals_of_the_machine_of_namespaces_and_of_all_hosts(tmp_path: Path) -> None:
    machine = Path("/etc/machine-id").read_text().strip()
    for name, number in (machine, 10), (f"{machine}.web", 20), ("remote", 40), ("f" * 32, 80):
        (tmp_path / "log" / name).mkdir(parents=True)
        write_many(tmp_path / "log" / name / "system.journal", number)
    program = f"""
import json, sys
from tcpwatchd.report import journals
journals.ROOTS = ({str(tmp_path / "log")!r}, {str(tmp_path / "run")!r})
for place in journals.Place(), journals.Place(namespace="web"), journals.Place(merge=True):
    found = journals.Journals(place)
    print(len(list(found.read(0, 1 << 62, None))), found.faults)
try:
    journals.Journals(journals.Place(namespace="none"))
except journals.Failure as failure:
    print(failure)
"""
    done = subprocess.run(
        [PYTHON, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    *numbers, none = done.stdout.splitlines()
    assert numbers == ["10 []", "20 []", "150 []"]
    assert none == f"there is no journal in {tmp_path / 'log'} or {tmp_path / 'run'} of the namespace none"


# What is damaged.


@pytest.mark.parametrize("part", [0.05, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_told(folder: Path, part: float) -> None:
    write_many(folder / "b.journal", 7, BEGIN + 1000 * SECOND)
    path = folder / "a.journal"
    os.truncate(path, int(path.stat().st_size * part))
    check_told(folder, path, 7)


@pytest.mark.parametrize("length", [0, 1, 100, 208, 4096])
def test_a_file_without_entries_is_told(folder: Path, length: int) -> None:
    write_many(folder / "b.journal", 7, BEGIN + 1000 * SECOND)
    path = folder / "a.journal"
    os.truncate(path, length)
    check_told(folder, path, 7)


@pytest.mark.parametrize(
    "content", [b"", b"no journal\n", b"LPKSHHRH", b"LPKSHHRH" + bytes(1000), os.urandom(5000)]
)
def test_what_is_no_journal_is_told(tmp_path: Path, content: bytes) -> None:
    write_many(tmp_path / "b.journal", 7)
    path = tmp_path / "a.journal"
    path.write_bytes(content)
    check_told(tmp_path, path, 7)


def check_told(folder: Path, path: Path, least: int) -> None:
    """What is there is read, and one line says that there was more."""
    told = read_report("-D", folder)
    assert least <= told["connections"]["all"] < MANY + least
    (fault,) = told["not_counted"]["faults"]
    assert fault.startswith(f"{path}: ")
    assert "\n" not in fault
    assert fault in run_report("-D", folder).stdout


def test_a_directory_a_pipe_and_a_link_to_nowhere_in_place_of_files(folder: Path) -> None:
    (folder / "b.journal").mkdir()
    os.mkfifo(folder / "c.journal")
    (folder / "d.journal").symlink_to(folder / "nowhere")
    told = read_report("-D", folder)
    assert told["connections"]["all"] == MANY
    faults = told["not_counted"]["faults"]
    assert [fault.split(": ")[0] for fault in faults] == [
        str(folder / "b.journal"),
        str(folder / "c.journal"),
    ]


def test_what_nobody_can_read_says_which_group_may(folder: Path) -> None:
    folder.chmod(0o755)
    for parent in folder.parents:
        if parent.stat().st_uid == os.geteuid() and parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o755)
    write_many(folder / "b.journal", 7, BEGIN + 1000 * SECOND)
    (folder / "a.journal").chmod(0o644)
    (folder / "b.journal").chmod(0o600)
    shut = folder / "shut"
    shut.mkdir(mode=0o700)
    done = run_as_nobody(folder, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["connections"]["all"] == MANY
    who = "Permission denied, only root and members of the groups adm and systemd-journal may"
    assert told["not_counted"]["faults"] == [f"2 files or folders: {who}"]
    (folder / "a.journal").chmod(0o600)
    done = run_as_nobody(folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"tcpwatchd-report: 3 files or folders: {who}\n"
    done = run_as_nobody(shut)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"tcpwatchd-report: {shut}: Permission denied")
    assert "systemd-journal" in done.stderr


def run_as_nobody(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command = [*drop, *COMMAND, "-D", str(folder), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=60)


ROTATES = """
import os, sys
from tcpwatchd.report import journals
folder, what = sys.argv[1:]
look = journals.os.open
found = journals.Journals(journals.Place(folder))
if what == "renamed":
    os.rename(folder + "/a.journal", folder + "/a@1-2.journal")
elif what == "removed":
    os.unlink(folder + "/a.journal")
elif what == "truncated":
    os.truncate(folder + "/a.journal", 100_000)
print(len(list(found.read(0, 1 << 62, None))), found.faults)
"""


@pytest.mark.parametrize(("what", "read"), [("renamed", MANY), ("removed", 0), ("truncated", 0)])
def test_a_file_that_changes_after_it_was_found(folder: Path, what: str, read: int) -> None:
    """Libsystemd opens none that was removed."""
    command = [PYTHON, "-c", ROTATES, str(folder), what]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    number, _, told = done.stdout.partition(" ")
    assert int(number) == read
    assert ("a.journal" in told) == (what != "renamed")


def test_bytes_that_were_overwritten_break_nothing_and_are_told(folder: Path, reader: Reader) -> None:
    """But where the bytes are those of a text, whose checksum nobody looks at; or make an entry look older or
    newer than it is, and libsystemd passes over those between: as journalctl does."""
    path, rng = folder / "a.journal", random.Random(5)
    data = path.read_bytes()
    begin, end = find_objects(data)
    ends, outcomes = time.monotonic() + 6, []
    for _ in range(120):
        length = rng.choice([1, 8, 64, 4096])
        at = rng.randrange(begin, end - length) if rng.random() < 0.9 else rng.randrange(begin - length)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(rng.randbytes(length))
        read, told = reader.read(folder)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data[at : at + length])
        assert len(read) <= MANY
        assert len(told) <= 1
        outcomes.append(len(read) == MANY or bool(told))
        if time.monotonic() > ends:
            break
    assert len(outcomes) > 20
    assert outcomes.count(False) <= 2
    assert reader.read(folder) == ([BEGIN + index * SECOND for index in range(MANY)], [])


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_a_hole_in_the_middle_is_told(folder: Path, reader: Reader, part: float) -> None:
    path = folder / "a.journal"
    begin, end = find_objects(path.read_bytes())
    with path.open("r+b") as file:
        file.seek(begin + int((end - begin) * part))
        file.write(bytes((end - begin) // 10))
    read, told = reader.read(folder)
    assert 0 < len(read) < MANY
    (fault,) = told
    assert fault.startswith(f"{path}: ")


def find_objects(data: bytes) -> tuple[int, int]:
    """Where the entries of a file begin and end: behind its two tables (journal-file-format)."""
    where, size, other, other_size = struct.unpack_from("<4Q", data, 104)
    return max(where + size, other + other_size), len(data.rstrip(b"\0"))
