"""The program: its flags, its status, and that whatever goes wrong is told in one line."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tcpwatchd import __version__
from tcpwatchd.connection import Closed, Owner
from tcpwatchd.output import event
from tests.namespace import wait_until
from tests.report.journals import REMOTE, export, make_connection, write_journal
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

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.journals
HOSTILE = ["<script>alert(1)</script>", "a\nb", "\x1b[31mred\x1b[0m", "\u202egnp.exe", "x\x00y", "&amp;\"'`"]
LONG = 30_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("journals")
    write_many(made / "a.journal", 100)
    return made


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many that the clock is looked at while they are read."""
    made = tmp_path_factory.mktemp("long")
    one = export(open_at(BEGIN))
    stamp = b"__REALTIME_TIMESTAMP=%d\n"
    write_journal(
        made / "a.journal",
        (one.replace(stamp % BEGIN, stamp % (BEGIN + index)) for index in range(LONG)),
    )
    return made


# What it prints.


def test_a_report_on_a_terminal_in_json_and_as_a_page(folder: Path, tmp_path: Path) -> None:
    done = run_report("-D", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "Connections of web1\nFrom 2026-11-18 11:06:40 UTC to 2026-11-18 11:08:19 UTC: "
    )
    assert "100 connections, 100 in, 0 out, 0 within." in done.stdout
    assert "\x1b" not in done.stdout
    told = read_report("-D", folder)
    assert told["connections"] == {"all": 100, "ingress": 100, "egress": 0, "internal": 0}
    page = tmp_path / "page.html"
    done = run_report("-D", folder, "--html", page)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert os.listdir(tmp_path) == ["page.html"]
    done = run_report("-D", folder, "--html", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == page.read_text()


def test_flags(folder: Path) -> None:
    assert run_report("--version").stdout == f"tcpwatchd-report {__version__}\n"
    usage = run_report("--help")
    assert usage.returncode == 0
    for flag in (
        "--since",
        "--until",
        "--boot",
        "--directory",
        "--merge",
        "--namespace",
        "--unit",
        "--top",
        "--json",
        "--html",
    ):
        assert flag in usage.stdout
    period = ["--since", f"@{BEGIN // SECOND + 10}", "--until", f"@{BEGIN // SECOND + 19}"]
    assert read_report("-D", folder, *period)["connections"]["all"] == 10
    assert read_report("-D", folder, "-b")["connections"]["all"] == 100
    assert read_report("-D", folder, "dst", "port", "443", "and", "ip")["connections"]["all"] == 100
    assert read_report("-D", folder, "not ingress")["connections"]["all"] == 0
    assert read_report("-D", folder, "-u", "other.service")["connections"]["all"] == 0
    assert len(read_report("-D", folder, "-n", "1")["longest"]) <= 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--frobnicate"], "--frobnicate"),
        (["--sinc=-1h"], "--sinc"),
        (["--since", "whenever"], "argument --since: expected a time .* found 'whenever'"),
        (["--until", "--json"], "argument --until"),
        (["--until", "2026-13-45"], "argument --until: .* found '2026-13-45'"),
        (["--until", "@999999999999"], "argument --until"),
        (["--since", "-1h", "--until", "-2h"], "argument --until: it is before --since"),
        (["-n", "0"], "argument -n/--top: .* found '0'"),
        (["-n", "9" * 5000], "argument -n/--top"),
        (["-n", "-1"], "argument -n/--top"),
        (["-n", "\u0663"], "argument -n/--top"),
        (["--json", "--html", "x"], "argument --html: not allowed with argument --json"),
        (["-m", "--namespace", "x"], "argument --namespace: not allowed"),
        (["-b", "99"], "argument -b: the journal has 1 boots"),
        (["prot", "80"], "filter, column 1: expected"),
        (["dst port 443 and"], "filter, column 17: expected"),
        (["--since", "a\nb"], r"argument --since: .*a\\n"),
    ],
)  # fmt: skip
def test_wrong_usage_names_the_flag(folder: Path, arguments: list[str], named: str) -> None:
    place = [] if "-m" in arguments else ["-D", str(folder)]
    done = run_report(*place, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"tcpwatchd-report: .*{named}.*\n", done.stderr)


def test_nothing_in_the_period_says_so(folder: Path, tmp_path: Path) -> None:
    period = ["--since", "2020-01-01", "--until", "2020-01-02"]
    done = run_report("-D", folder, *period)
    assert (done.returncode, done.stderr) == (0, "")
    nothing = "the journal has no entry of tcpwatchd.service."
    assert f"From 2020-01-01 00:00:00 UTC to 2020-01-02 00:00:00 UTC: {nothing}" in done.stdout
    assert run_report("-D", folder, *period, "--html", tmp_path / "page.html").returncode == 0
    assert nothing in (tmp_path / "page.html").read_text()
    assert ": no connections." in run_report("-D", folder, "dst port 1").stdout
    assert "no entry of mine.service." in run_report("-D", folder, "-u", "mine").stdout
    assert "no entry of tcpwatchd" in run_report("-D", folder, "--until", "@0", "--since", "@0").stdout
    assert read_report("-D", folder, *period)["connections"]["all"] == 0


def test_a_journal_without_the_daemon_says_so(tmp_path: Path) -> None:
    write_journal(
        tmp_path / "a.journal",
        [export(open_at(BEGIN), {"SYSLOG_IDENTIFIER": "sshd", "_SYSTEMD_UNIT": "a.b"})],
    )
    done = run_report("-D", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no entry of tcpwatchd.service." in done.stdout
    assert "1970" not in done.stdout


def test_without_a_journal_it_fails(tmp_path: Path) -> None:
    for place, told in (
        (tmp_path, f"there is no journal in {tmp_path}"),
        (tmp_path / "none", f"{tmp_path / 'none'}: No such file or directory"),
    ):
        done = run_report("-D", place)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"tcpwatchd-report: {told}\n")


# Where it cannot write.


@pytest.mark.parametrize("form", [[], ["--json"], ["--html", "-"], ["--html", "/dev/full"]])
def test_a_full_disk_is_told(folder: Path, form: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "-D", folder, *form], env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch("tcpwatchd-report: (/dev/full: )?No space left on device\n", done.stderr)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of one page."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.root
def test_a_page_that_has_no_room_leaves_the_old_one(folder: Path, small: Path) -> None:
    page = small / "page.html"
    page.write_text("old")
    done = run_report("-D", folder, "--html", page)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"tcpwatchd-report: {page}: No space left on device\n"
    assert (page.read_text(), os.listdir(small)) == ("old", ["page.html"])


@pytest.mark.parametrize("where", ["missing/page.html", "folder", "file/page.html"])
def test_a_page_that_cannot_be_there_is_told(folder: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    done = run_report("-D", folder, "--html", tmp_path / where)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"tcpwatchd-report: {tmp_path / where}: [A-Z].*\n", done.stderr)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("form", [[], ["--json", "-n", "1000"], ["--html", "-"]])
def test_a_reader_that_has_seen_enough_is_no_fault(folder: Path, form: list[str]) -> None:
    with subprocess.Popen(
        [*COMMAND, "-D", folder, *form], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert (process.stderr.read(), process.wait(20)) == (b"", 0)


@pytest.mark.parametrize(
    ("closed", "status"), [(">&-", 1), ("2>&-", 0), (">&- 2>&-", 1), ("<&- >&- 2>&-", 1), ("2>&- --top=0", 2)]
)
def test_closed_streams(folder: Path, closed: str, status: int) -> None:
    command = f'exec "$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", command, "sh", *COMMAND, "-D", folder], env=ENVIRONMENT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert ("web1" in done.stdout) == (status == 0)
    assert done.stderr == ("tcpwatchd-report: Bad file descriptor\n" if closed == ">&-" else "")


def test_an_interrupt_ends_it(long: Path, tmp_path: Path) -> None:
    """While it reads, or as it waits for whoever takes the page."""
    page = tmp_path / "page.html"
    os.mkfifo(page)
    with subprocess.Popen(
        [*COMMAND, "-D", long, "--html", page], env=ENVIRONMENT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        maps = Path(f"/proc/{process.pid}/maps")
        while "a.journal" not in maps.read_text():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == (b"", b"")
    assert process.returncode == 130
    assert os.listdir(tmp_path) == ["page.html"]


# What it needs.


@pytest.mark.parametrize(
    ("module", "form", "package"),
    [
        ("rich", [], "python3-rich (Debian, Fedora) or rich (PyPI)"),
        ("jinja2", ["--html", "-"], "python3-jinja2 (Debian, Fedora) or Jinja2 (PyPI)"),
        ("systemd", ["--json"], "python3-systemd (Debian, Fedora) or systemd-python (PyPI)"),
    ],
)
def test_a_module_that_is_missing_is_named(
    folder: Path, tmp_path: Path, module: str, form: list[str], package: str
) -> None:
    (tmp_path / f"{module}.py").write_text(
        f"raise ModuleNotFoundError(\"No module named '{module}'\", name='{module}')\n"
    )
    path = f"{tmp_path}:{ENVIRONMENT['PYTHONPATH']}"
    done = run_report("-D", folder, *form, PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"tcpwatchd-report: the Python module {module} is missing: install {package}\n"
    if module != "systemd":
        assert run_report("-D", folder, "--json", PYTHONPATH=path).returncode == 0


# How long it takes, and how much.


PATIENT = """
import sys
from tcpwatchd.report import __main__ as program, progress
progress.PATIENCE = float(sys.argv.pop(1))
sys.exit(program.main())
"""


def test_a_bar_for_whoever_waits_at_a_terminal(long: Path) -> None:
    shown = read_terminal(long, patience=0)
    assert b"Reading the journal" in shown
    assert re.search(rb"[0-9]+%", shown)
    assert b"Reading" not in read_terminal(long, patience=3600)


def test_no_bar_where_there_is_no_terminal(long: Path) -> None:
    command = [PYTHON, "-c", PATIENT, "0", "-D", str(long), "--json"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def read_terminal(folder: Path, patience: int) -> bytes:
    """What comes on standard error, which is a terminal; a bar is to come after so many seconds."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [PYTHON, "-c", PATIENT, str(patience), "-D", folder, "--json"], stdout=subprocess.DEVNULL,
        env={**ENVIRONMENT, "TERM": "xterm"}, stderr=follower,
    ) as process:  # fmt: skip
        os.close(follower)
        shown = b""
        while select.select([leader], [], [], 60)[0]:
            try:
                shown += os.read(leader, 4096)
            except OSError:  # everybody closed it
                break
    os.close(leader)
    assert process.returncode == 0
    return shown


PEAK = """
import sys
from tcpwatchd.report import __main__ as program
status = program.main()
with open("/proc/self/status") as lines:
    print(next(line.split()[1] for line in lines if line.startswith("RssAnon")), file=sys.stderr)
sys.exit(status)
"""


def test_memory_does_not_grow_with_the_journal(tmp_path: Path) -> None:
    """Each connection has a peer of its own, so all tallies are full; a row of each takes over 1 kB."""
    anonymous = []
    for number in 50_000, 130_000:
        folder = tmp_path / str(number)
        folder.mkdir()
        write_journal(folder / "a.journal", list_unique(number))
        done = subprocess.run(
            [PYTHON, "-c", PEAK, "-D", folder, "--json"],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=True,
        )
        told = json.loads(done.stdout)
        assert told["connections"]["all"] == number
        assert told["peers"]["at_most_more"] > 0
        anonymous.append(int(done.stderr))
    assert anonymous[1] < anonymous[0] * 1.5


def list_unique(number: int) -> Iterator[bytes]:
    peer, stamp = b"192.0.2.1", b"__REALTIME_TIMESTAMP=%d\n"
    made = make_connection("192.0.2.1:1024", "10.0.0.1:443", time=BEGIN * 1000)
    closed = Closed(made, BEGIN * 1000, "fin", "source", 1, 2, "trace")
    one = export(event.connection_closed(closed, BEGIN, BEGIN))
    head, *rest = one.replace(stamp % BEGIN, b"").split(peer)
    for index in range(number):
        address = b"10.%d.%d.%d" % (index >> 16, index >> 8 & 255, index & 255)
        yield stamp % (BEGIN + index) + address.join([head, *rest])


# Names that somebody chose.


def test_hostile_names_are_text(tmp_path: Path) -> None:
    entries = []
    for index, name in enumerate(HOSTILE):
        owner = Owner(user=1, unit=None, name=name, user_name=name)
        moment = BEGIN + index * SECOND
        made = make_connection(f"192.0.2.{index + 1}:1024", "10.0.0.1:80", owner=owner, time=moment * 1000)
        closed = Closed(made, (moment + 5) * 1000, "reset", "source", 1, 2, "trace")
        entries.append(export(event.connection_closed(closed, moment, moment + 5)))
        entries.append(export(event.poll_failed(name, moment + 6)))
    write_journal(tmp_path / "a.journal", entries)
    done = run_report("-D", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    page = run_report("-D", tmp_path, "--html", "-").stdout
    plain = run_report("-D", tmp_path, "--json").stdout
    assert plain.isascii()
    for text in done.stdout, page, plain:
        assert all(character.isprintable() or character == "\n" for character in text)
    names = {one["name"] for one in json.loads(plain)["services"]["top"]}
    shown = (
        "<script>alert(1)</script>", "a\\nb", "\\x1b[31mred\\x1b[0m", "\\u202egnp.exe", "x\\x00y", "&amp;\"'`"
    )  # fmt: skip
    assert names == {f"process {name}" for name in shown}
    for name in names:
        assert name in done.stdout
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&amp;amp;&#34;&#39;`" in page


def test_the_tests_run_what_is_shipped() -> None:
    assert Path(sys.modules["tcpwatchd"].__file__ or "").parents[1] == Path(ENVIRONMENT["PYTHONPATH"])


def test_a_new_page_is_for_its_owner_and_an_old_one_keeps_its_mode(folder: Path, tmp_path: Path) -> None:
    """It is personal data. Where somebody else put something in the way, nothing is written through it."""
    page, link = tmp_path / "page.html", tmp_path / "link.html"
    assert run_report("-D", folder, "--html", page).returncode == 0
    assert page.stat().st_mode & 0o777 == 0o600
    page.chmod(0o640)
    page.write_text("old")
    link.symlink_to(page)
    assert run_report("-D", folder, "--html", link).returncode == 0
    assert page.stat().st_mode & 0o777 == 0o640
    assert "<html" in page.read_text()
    assert link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "link.html"}


def test_a_file_whose_name_is_hostile_is_told_as_text(tmp_path: Path) -> None:
    for name in b"\x1b]0;pwned.journal", b"\xff.journal":
        (tmp_path / os.fsdecode(name)).write_bytes(b"no journal")
    write_journal(tmp_path / "a.journal", [export(open_at(BEGIN))])
    for form in [], ["--json"], ["--html", "-"]:
        done = run_report("-D", tmp_path, *form)
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        assert "pwned.journal" in done.stdout


def test_what_is_written_meanwhile_is_no_damage(tmp_path: Path) -> None:
    """Two thousand entries that come while it reads."""
    path = tmp_path / "a.journal"
    writer = subprocess.Popen([REMOTE, f"--output={path}", "--split-mode=none", "-"], stdin=subprocess.PIPE,
                              stderr=subprocess.DEVNULL)  # fmt: skip
    assert writer.stdin
    for number in range(2000):
        writer.stdin.write(export(open_at(BEGIN + number * SECOND)))
    writer.stdin.flush()
    wait_until(lambda: path.exists() and path.stat().st_size > 1 << 20, 20, "a journal")
    for turn in range(5):
        for number in range(400):
            writer.stdin.write(export(open_at(BEGIN + (2000 + turn * 400 + number) * SECOND)))
        writer.stdin.flush()
        assert read_report("-D", tmp_path)["not_counted"]["faults"] == []
    writer.communicate()


@pytest.mark.parametrize("flag", ["--html", "-D"])
def test_an_empty_name_is_wrong_usage(flag: str) -> None:
    done = run_report(flag, "")
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected a name" in done.stderr


@pytest.mark.parametrize("report", ["opened", "closed", "both"])
def test_periods_that_follow_count_each_connection_once(tmp_path: Path, report: str) -> None:
    """Of a daemon that tells so of connections that cross from one period into another."""
    told = [event.watch_started("1.0", 10, True, BEGIN)]
    for number in range(200):
        opened = BEGIN + number * SECOND
        closed = opened + (number % 7) * 9 * SECOND + SECOND // 2
        made = make_connection(
            f"192.0.2.{number % 50 + 1}:{1024 + number}", "10.0.0.1:80", time=opened * 1000
        )
        if report != "closed":
            told.append(event.connection_opened(made, opened))
        if report != "opened":
            ended = Closed(made, closed * 1000, "fin", "source", 1, 2, "trace")
            told.append(event.connection_closed(ended, opened, closed))
    write_journal(tmp_path / "a.journal", map(export, sorted(told, key=lambda what: what.time)))
    ends = [BEGIN + number * SECOND + SECOND // 4 for number in (-1, 60, 110, 190, 400)]
    counted, first_seen = 0, 0
    for begin, end in zip(ends, ends[1:]):
        found = read_report("-D", tmp_path, "--since", format_at(begin), "--until", format_at(end))
        counted += found["connections"]["all"]
        first_seen += found["first_seen"]["number"] or (begin == ends[0]) * found["peers"]["names"]
    assert (counted, first_seen) == (200, 50)
