"""The command line: every setting with its default, check and help."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, NoReturn

from tcpwatchd import __version__
from tcpwatchd.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tcpwatchd.connection import Report

INTERVAL_RANGE = (0.1, 86400.0)
BUFFER_RANGE = (16, 16384)


class Settings(argparse.Namespace):
    """The values in force. `interval` is in seconds, `trace_buffer` in KiB a CPU, if it was given."""

    interval: float
    output: str
    trace: str
    trace_instance: str | None
    trace_buffer: int | None
    trace_setup: bool
    report: Report
    message_owner: bool
    command_lines: bool
    once: bool


class UsageError(Failure):
    """What was asked for makes no sense, or cannot be had here; the text names the flag."""


class Parser(argparse.ArgumentParser):
    """Leaves it to the caller to say what is wrong; the usage is there for --help."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse_arguments(arguments: Sequence[str]) -> Settings:
    """Raises UsageError, and SystemExit with status 0 after --help and --version."""
    return make_parser().parse_args(arguments, namespace=Settings())


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="tcpwatchd",
        description="Reports every new TCP connection of this machine, once.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        default=10.0,
        type=parse_interval,
        help="time between polls, 0.1 to 86400 (default: 10)",
    )
    parser.add_argument(
        "--output",
        metavar="auto|journal|text|json",
        default="auto",
        type=one_of("auto", "journal", "text", "json"),
        help="where events go (default: auto, the journal when stdout or stderr is connected to it, "
        "else text)",
    )
    parser.add_argument(
        "--trace",
        metavar="auto|no|require",
        default="auto",
        type=one_of("auto", "no", "require"),
        help="whether to use the kernel's trace (default: auto, when it is to be had)",
    )
    parser.add_argument(
        "--trace-instance",
        metavar="NAME",
        type=parse_instance,
        help="the instance of tracefs to use; made when it is not there, and removed at the end",
    )
    parser.add_argument(
        "--trace-buffer",
        metavar="KIB",
        type=parse_buffer,
        help="memory a CPU for the trace in KiB, 16 to 16384 (default: 512)",
    )
    add_report_flags(parser)
    parser.add_argument("--trace-setup", action="store_true", help="make the service's instance, and exit")
    parser.add_argument("--once", action="store_true", help="report what is open now, and exit")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    """What is said of a connection, and when."""
    parser.add_argument(
        "--report",
        metavar="opened|closed|both",
        default="opened",
        type=one_of("opened", "closed", "both"),
        help="when a connection is reported: as it opens, as it closes, with what is known then, or both "
        "times (default: opened)",
    )
    parser.add_argument(
        "--message-owner",
        action="store_true",
        help="end each message with who owns the connection, for people who read along",
    )
    parser.add_argument(
        "--command-lines",
        action="store_true",
        help="report the command line of who connects too, which may hold secrets",
    )


def parse_interval(text: str) -> float:
    shortest, longest = INTERVAL_RANGE
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not shortest <= seconds <= longest:
        raise argparse.ArgumentTypeError(
            f"not a number of seconds from {shortest:g} to {longest:g}: {text!r}"
        )
    return seconds


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"not one of {', '.join(choices)}: {text!r}")
        return text

    return parse


def parse_instance(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", text):
        raise argparse.ArgumentTypeError(f"not a name of letters, digits, dots, - and _: {text!r}")
    return text


def parse_buffer(text: str) -> int:
    smallest, largest = BUFFER_RANGE
    if not re.fullmatch("[0-9]{1,9}", text) or not smallest <= int(text) <= largest:
        raise argparse.ArgumentTypeError(f"not a number of KiB from {smallest} to {largest}: {text!r}")
    return int(text)
