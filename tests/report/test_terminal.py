"""The report on terminals of several widths, in colour and without, in UTF-8 and in ASCII, and in a file."""

from __future__ import annotations

import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl

import pytest
from rich.cells import cell_len
from rich.console import Console

from tcpwatchd.report.outline import FirstSeen, Table, make_outline
from tcpwatchd.report.terminal import LEAST_WIDTH, MOST_STEPS, print_report, print_rows, print_timeline
from tcpwatchd.report.timeline import make_timeline
from tests.report.program import PROJECT
from tests.report.summaries import outline_of, sum_up

PRINT = """
import sys
from tcpwatchd.report.terminal import print_report
from tests.report.summaries import outline_of, sum_up
summary = sum_up(int(sys.argv[1]))
print_report(sys.stdout, summary, outline_of(summary, ["/a.journal: it is damaged"]))
"""
STYLE = re.compile("\x1b\\[[0-9;]*m")


def print_at(width: int, number: int = 400, **environment: str) -> str:
    """What a terminal so wide gets."""
    leader, follower = pty.openpty()
    ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 40, width, 0, 0))
    inherited = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "TERM": "xterm-256color"}
    with subprocess.Popen(
        [sys.executable, "-c", PRINT, str(number)], stdin=follower, stdout=follower, stderr=subprocess.PIPE,
        env={**inherited, "PYTHONDONTWRITEBYTECODE": "1", "TZ": "UTC", "LC_ALL": "C.UTF-8", **environment},
    ) as process:  # fmt: skip
        os.close(follower)
        shown = b""
        try:
            while more := os.read(leader, 65536):
                shown += more
        except OSError:  # it is over
            pass
        assert process.stderr
        assert (process.stderr.read(), process.wait()) == (b"", 0)
    os.close(leader)
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_all_is_told_and_no_line_is_wider_than_the_terminal(width: int) -> None:
    shown = print_at(width)
    lines = [STYLE.sub("", line) for line in shown.splitlines()]
    assert [line for line in lines if cell_len(line) > width] == []
    text = "\n".join(lines)
    assert text.replace("\n", "").isprintable()
    squeezed = "".join(text.split())
    for table in outline_of(sum_up()).tables:
        section = squeezed[squeezed.index("".join(table.title.split())) :]
        for row in table.rows:
            cells = [cell for column, cell in zip(table.columns, row) if column not in ("<last", "<opened")]
            assert [cell for cell in cells if "".join(cell.split()) not in section and len(cell) < 80] == []
    for title in (
        "Services",
        "Peers",
        "Ports",
        "Longest connections",
        "Port scans",
        "What this report could not",
    ):
        assert f"\n{title}" in text


@pytest.mark.parametrize("width", [20, 40])
def test_a_terminal_that_is_too_narrow_breaks_nothing(width: int) -> None:
    assert print_at(width) == print_at(LEAST_WIDTH)


def test_a_long_name_keeps_its_end_and_the_numbers_theirs() -> None:
    made = sum_up(40, [f"{'x' * 300}{number}.service" for number in (1, 2)])
    table = make_outline(made, FirstSeen(None, [], 0), [], 10).tables[0]
    console = Console(file=io.StringIO(), width=60, highlight=False, markup=False)
    print_rows(console, table)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    numbers = [re.findall(r"([0-9]+) +([0-9]+) +([0-9]+) +([0-9.]+ [MG]B)$", line) for line in lines]
    assert [row for line in numbers for row in line] == [tuple(row[1:]) for row in table.rows]
    whole = "".join(line.split(" ")[0] for line in lines)
    assert "x…x" in whole
    assert "x1.service" in whole
    assert "x2.service" in whole


@pytest.mark.parametrize("number", [1, 10**6])
def test_large_numbers_leave_less_room_for_bars(number: int) -> None:
    summary = sum_up(40)
    for key in summary.times:
        summary.times[key] *= number
    console = Console(file=io.StringIO(), width=60, highlight=False, markup=False)
    print_timeline(console, summary)
    assert isinstance(console.file, io.StringIO)
    *_, first, last = console.file.getvalue().splitlines()
    most = max(sum(step.counts) for step in make_timeline(summary, MOST_STEPS).steps)
    assert all(len(line) <= 60 for line in (first, last))
    assert most >= number
    total = sum(int(text) for line in console.file.getvalue().splitlines()[3:] for text in line.split()[-3:])
    assert total == sum(summary.times.values())


def test_colour_only_on_a_terminal_that_has_it() -> None:
    assert re.search("\x1b\\[3[0-9]m█", print_at(80))
    assert not re.search("\x1b\\[[0-9;]*3[0-9]", print_at(80, NO_COLOR="1"))
    assert "\x1b" not in print_at(80, TERM="dumb")
    assert "\x1b" not in print_to_file("utf-8")


def test_a_terminal_without_utf_8_gets_what_it_can_show() -> None:
    shown = print_at(80, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert shown.isascii()
    assert "###" in shown
    assert [line for line in shown.splitlines() if len(STYLE.sub("", line)) > 80] == []


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "iso-8859-1"])
def test_a_file_has_everything_whole(encoding: str) -> None:
    text = print_to_file(encoding)
    assert ("größe ☃" if encoding == "utf-8" else "\\u2603") in text
    assert "x" * 300 in text


def print_to_file(encoding: str) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    summary = sum_up()
    print_report(file, summary, outline_of(summary, top=20))
    file.flush()
    assert isinstance(file.buffer, io.BytesIO)
    return file.buffer.getvalue().decode(encoding)


def test_bars_are_as_long_as_their_numbers() -> None:
    lines = [STYLE.sub("", line) for line in print_at(120, NO_COLOR="1").splitlines()]
    bars = [re.fullmatch(r"\S+ \S+ +(█*) +([0-9]+) +([0-9]+) +([0-9]+)", line.rstrip()) for line in lines]
    found = [(len(bar[1]), sum(map(int, bar.groups()[1:]))) for bar in bars if bar]
    assert len(found) > 10
    most = max(number for _, number in found)
    for length, number in found:
        assert length == pytest.approx(40 * number / most, abs=2)


def test_nothing_to_show_is_shown() -> None:
    assert "no connections" in print_at(80, 0)


def test_what_has_no_room_beside_goes_below_its_row_and_the_short_stays() -> None:
    row = ["2026-11-25 12:00:00 CET", "1.2.3.4:5", "1.1.1.1:443", "nginx", "13 min 52 s", "1.73 kB"]
    columns = ["<opened", "<from", "<to", "<service", "duration", "bytes"]
    console = Console(file=io.StringIO(), width=60, highlight=False, markup=False)
    print_rows(console, Table("", columns, [row, [*row[:1], "1.2.3.40:500", *row[2:]]], []))
    assert isinstance(console.file, io.StringIO)
    assert [" ".join(line.split()) for line in console.file.getvalue().splitlines()] == [
        "opened, from, to service duration bytes",
        "2026-11-25 12:00:00 CET nginx 13 min 52 s 1.73 kB",
        "1.2.3.4:5 1.1.1.1:443",
        "2026-11-25 12:00:00 CET nginx 13 min 52 s 1.73 kB",
        "1.2.3.40:500 1.1.1.1:443",
    ]
