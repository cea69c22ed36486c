"""tcpwatchd-report: arguments, wiring and exit status."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import re
import stat
import sys
import tempfile
import time
from typing import TYPE_CHECKING, NoReturn

from tcpwatchd import __version__
from tcpwatchd.failure import Failure, UsageError, describe
from tcpwatchd.report.chosen import compile_filter
from tcpwatchd.report.journals import Journals, Place
from tcpwatchd.report.outline import FirstSeen, make_outline
from tcpwatchd.report.period import FOREVER, find_boot, is_boot, parse_time
from tcpwatchd.report.progress import follow
from tcpwatchd.report.structured import list_values
from tcpwatchd.report.summary import Summary
from tcpwatchd.report.tally import count

if TYPE_CHECKING:
    from collections.abc import Sequence

STDOUT, STDERR = 1, 2
MOST_ROWS = 1_000
COLLECT_AFTER = 50_000
"""Objects that are made before the garbage collector looks: most are of one entry, and gone with it."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def make_parser() -> Parser:
    parser = Parser(
        prog="tcpwatchd-report",
        allow_abbrev=False,
        description="Sum up the connections that tcpwatchd wrote to the journal.",
    )
    add = parser.add_argument
    add("filter", nargs="*", metavar="FILTER", help="connections that count, in the words of rules")
    add("--since", metavar="TIME", help='from then on: yesterday, -1h, "2026-11-24 03:00"')
    add("--until", metavar="TIME", help="up to then")
    add("-b", "--boot", nargs="?", const="0", metavar="ID", help="of this boot, or of another")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-D", "--directory", metavar="DIR", help="the journals in this directory")
    where.add_argument("-m", "--merge", action="store_true", help="the journals of all hosts that are here")
    where.add_argument("--namespace", metavar="NAMESPACE", help="the journal of this namespace")
    add("-u", "--unit", metavar="UNIT", default="tcpwatchd.service", help="the unit of the daemon")
    add("-n", "--top", type=parse_number, default=10, metavar="N", help="rows of each table; default 10")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, for programs")
    form.add_argument("--html", metavar="FILE", help="write a page with plots instead")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def parse_number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= MOST_ROWS:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {MOST_ROWS}, found {text!r}")
    return int(text)


def main() -> int:
    """Returns 0 for a report, also of nothing; 1 after a fault, 2 for wrong usage."""
    gc.set_threshold(COLLECT_AFTER)
    open_standard_streams()
    try:
        make_report(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        leave(STDOUT)
        return 0  # the reader has seen enough
    except KeyboardInterrupt:
        leave(STDOUT)
        return 130
    except (OSError, ImportError, Failure) as error:
        print_error(describe(error))
        leave(STDOUT)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def open_standard_streams() -> None:
    """Were one closed, the next file to be opened would get its number; to write to it fails."""
    while (null := os.open(os.devnull, os.O_RDONLY)) <= STDERR:
        os.set_inheritable(null, True)
    os.close(null)
    if sys.stdout is None:
        sys.stdout = open(STDOUT, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(STDERR, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def leave(stream: int) -> None:
    """What could not be written is not tried again at the end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream)
    os.close(null)


def print_error(text: str) -> None:
    line = f"tcpwatchd-report: {text}".encode("ascii", "backslashreplace").decode().replace("\n", "\\n")
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # closed: there is nowhere left to tell it
        leave(STDERR)


def make_report(arguments: Sequence[str]) -> None:
    """Raises Failure, OSError and ImportError."""
    given = make_parser().parse_intermixed_args(join_times(arguments))
    words = list(given.filter)
    if given.boot is not None and not is_boot(given.boot):
        words.insert(0, given.boot)  # -b alone, before a filter
        given.boot = "0"
    wanted = compile_filter(" ".join(words)) if words else None
    since, until = (
        None if text is None else parse_time(flag, text)
        for flag, text in (("--since", given.since), ("--until", given.until))
    )
    if since is not None and until is not None and since > until:
        raise UsageError("argument --until: it is before --since")
    for flag in ("directory", "html"):
        if getattr(given, flag) == "":
            raise UsageError(f"argument --{flag}: expected a name")
    if "." not in given.unit:
        given.unit += ".service"
    check_form(given)
    place = Place(given.directory, given.namespace, given.merge)
    journals = Journals(place)
    boot = None if given.boot is None else find_boot(given.boot, place)
    begin, end = find_period(journals, since, until, boot, to_last=bool(boot or place.directory))
    summary = Summary(begin, end, given.unit, given.top, wanted, journals.tells_openings(begin, given.unit))
    add = summary.add
    read = journals.read(since or 0, FOREVER if until is None else until, boot)
    for written, fields in follow(read, begin, end, sys.stderr):
        add(written, fields)
    first_seen = find_first_seen(summary, journals, given)
    write(given, summary, first_seen, journals.faults)


def find_period(
    journals: Journals, since: int | None, until: int | None, boot: str | None, to_last: bool
) -> tuple[int, int]:
    """Of the report, where it was not asked for: from the first entry, and until now or the last one."""
    first, last = journals.find_period(boot) or (None, None)
    now = time.time_ns() // 1000
    end = until if until is not None else last if to_last and last is not None else now
    begin = since if since is not None else min(end, first) if first is not None else end
    return begin, max(begin, end)


def join_times(arguments: Sequence[str]) -> list[str]:
    """A time can begin with a minus, and argparse takes that for a flag."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in ("--since", "--until"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def check_form(given: argparse.Namespace) -> None:
    """What is needed is imported before the journal is read. Raises ImportError."""
    if given.html is not None:
        import jinja2  # noqa: F401
    elif not given.json:
        import rich  # noqa: F401


def find_first_seen(summary: Summary, journals: Journals, given: argparse.Namespace) -> FirstSeen:
    """Of those that are counted, which are not all if there were too many."""
    since = journals.begins
    if since is None or since >= summary.since:
        return FirstSeen(None, [], 0)
    peers = set(summary.peers.rows)
    new = peers - journals.find_known(peers, summary.since, given.unit)
    ranked = sorted(new, key=lambda peer: (-count(summary.peers.rows[peer]), peer))
    first = [(peer, summary.peers.rows[peer]) for peer in ranked[: given.top]]
    return FirstSeen(since, first, len(new), is_least=summary.peers.most_missed > 0)


def write(given: argparse.Namespace, summary: Summary, first_seen: FirstSeen, faults: list[str]) -> None:
    """Raises OSError."""
    if given.json:
        json.dump(list_values(summary, first_seen, faults, given.top), sys.stdout, indent=2)
        print()
        return
    outline = make_outline(summary, first_seen, faults, given.top)
    if given.html is None:
        from tcpwatchd.report.terminal import print_report

        print_report(sys.stdout, summary, outline)
        return
    from tcpwatchd.report.page import format_page

    write_file(given.html, format_page(summary, outline))


def write_file(path: str, text: str) -> None:
    """In one step, so that whoever looks sees the old page or the new one. Raises OSError."""
    if path == "-":
        sys.stdout.buffer.write(text.encode())
        return
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        else:
            replace_file(path, text)
    except OSError as error:  # that a disk is full is told without a name
        raise OSError(error.errno, error.strerror, path) from error


def replace_file(path: str, text: str) -> None:
    """It is personal data: nobody else may read a new one. Raises OSError."""
    target = os.path.realpath(path)
    descriptor, new = tempfile.mkstemp(prefix=".tcpwatchd-report-", dir=os.path.dirname(target))
    with open(descriptor, "w", encoding="utf-8") as file, contextlib.ExitStack() as stack:
        stack.callback(os.unlink, new)
        with contextlib.suppress(FileNotFoundError):
            os.fchmod(descriptor, stat.S_IMODE(os.stat(target).st_mode))
        file.write(text)
        file.flush()
        os.replace(new, target)
        stack.pop_all()


if __name__ == "__main__":
    sys.exit(main())
