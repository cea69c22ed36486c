"""Every setting, once: its name, default, check and help. The command line is made from this table."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from tcpwatchd import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INTERVAL_RANGE = (0.1, 86400.0)
BUFFER_RANGE = (16, 65536)
TRACES = ("auto", "no", "require")
OUTPUTS = ("auto", "journal", "text", "json")


class Setting(NamedTuple):
    """`parse` turns a user's text into the value, or raises ValueError with what would be right."""

    name: str
    metavar: str
    default: Any
    parse: Callable[[str], Any]
    help: str


class Settings(NamedTuple):
    """The values in force. `interval` is in seconds, `trace_buffer` in KiB a CPU."""

    interval: float
    output: str
    trace: str
    trace_instance: str | None
    trace_buffer: int
    trace_setup: bool
    once: bool


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is there for --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parse_interval(text: str) -> float:
    shortest, longest = INTERVAL_RANGE
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not shortest <= seconds <= longest:
        raise ValueError(f"not a number of seconds from {shortest:g} to {longest:g}: {text!r}")
    return seconds


def choose_from(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"not one of {', '.join(choices)}: {text!r}")
        return text

    return parse


def parse_instance(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", text):
        raise ValueError(f"not a name of letters, digits, dots, - and _: {text!r}")
    return text


def parse_buffer(text: str) -> int:
    smallest, largest = BUFFER_RANGE
    if not text.isdecimal() or not smallest <= int(text) <= largest:
        raise ValueError(f"not a number of KiB from {smallest} to {largest}: {text!r}")
    return int(text)


SETTINGS = (
    Setting("interval", "SECONDS", 10.0, parse_interval, "time between polls, 0.1 to 86400 (default: 10)"),
    Setting(
        "output",
        "|".join(OUTPUTS),
        "auto",
        choose_from(OUTPUTS),
        "where events go (default: auto, the journal when stdout or stderr is connected to it, else text)",
    ),
    Setting(
        "trace",
        "|".join(TRACES),
        "auto",
        choose_from(TRACES),
        "whether to use the kernel's trace (default: auto, when it is to be had)",
    ),
    Setting(
        "trace-instance",
        "NAME",
        None,
        parse_instance,
        "the instance of tracefs to use; made when it is not there, and removed at the end",
    ),
    Setting(
        "trace-buffer", "KIB", 512, parse_buffer, "memory a CPU for the trace, 16 to 65536 (default: 512)"
    ),
)


def parse_arguments(arguments: Sequence[str]) -> Settings:
    """Raises SystemExit: status 0 after --help and --version, 2 with one line on stderr for wrong usage."""
    parser = Parser(
        prog="tcpwatchd",
        description="Reports every new TCP connection of this machine, once.",
        allow_abbrev=False,
    )
    for setting in SETTINGS:
        parser.add_argument(
            f"--{setting.name}",
            metavar=setting.metavar,
            default=setting.default,
            type=_explain(setting.parse),
            help=setting.help,
        )
    parser.add_argument("--trace-setup", action="store_true", help="make the service's instance, and exit")
    parser.add_argument("--once", action="store_true", help="report what is open now, and exit")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return Settings(**vars(parser.parse_args(arguments)))


def _explain(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let argparse show the message of a ValueError beside the flag's name."""

    def parse_flag(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_flag
