"""The man page says what the program does."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest

from tcpwatchd.config import make_parser
from tcpwatchd.connection import Closed, Owner
from tcpwatchd.output import event
from tests.daemon import Daemon, run_program
from tests.kept import CONNECTION
from tests.namespace import run

PATH = Path(__file__).parents[1] / "packaging/tcpwatchd.8"
PAGE = PATH.read_text()


def read_section(name: str) -> str:
    return PAGE.split(f".Sh {name}\n")[1].split("\n.Sh ")[0]


def test_every_flag_and_no_other() -> None:
    flags = set(re.findall(r"--[a-z-]+", run_program("--help").stdout))
    described = re.findall(r"^\.It Fl (\S+)", read_section("DESCRIPTION"), re.MULTILINE)
    assert {f"-{name}" for name in described} == flags
    assert {f"-{name}" for name in re.findall(r"Fl (-\S+)", read_section("SYNOPSIS"))} == flags


def test_every_value_and_default() -> None:
    for action in make_parser()._actions:
        if not action.metavar:
            continue
        (flag,) = action.option_strings
        (rest,) = re.findall(rf"^\.It Fl {flag[1:]} (.*)$", PAGE, re.MULTILINE)
        assert rest.split(" ", 1)[1].replace(" ", "") == action.metavar
        text = PAGE.split(f".It Fl {flag[1:]} ")[1].split(".It Fl")[0]
        default = action.default or ""
        default = default if isinstance(default, str) else f"{default:g}"
        assert default in text


def test_every_message_id() -> None:
    identifiers = {value for value in vars(event).values() if isinstance(value, str) and len(value) == 32}
    assert set(re.findall(r"\b[0-9a-f]{32}\b", read_section("MESSAGE IDS"))) == identifiers


def test_every_field() -> None:
    daemon = Daemon("--output", "json", "--trace", "no", "--interval", "60")
    daemon.read_line()
    _, rest, _ = daemon.end(signal.SIGTERM)
    stopped = json.loads(rest.splitlines()[-1])
    others = [event.watch_started("0", 1, True, 0), event.trace_gap(0, 0), event.poll_failed("", 0)]
    others.append(event.trace_used("", 1, True, None, 0))
    everything = Owner._make(range(len(Owner._fields)))
    connection = CONNECTION._replace(owner=everything, listener=everything)
    others.append(event.connection_closed(Closed(connection, 9, "fin", "both", 1, 2, "trace"), 0, 0))
    fields = {name for made in (event.connection_opened(connection, 0), *others) for name in made.fields}
    named = re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b|\bMESSAGE\b|\bPRIORITY\b", read_section("JOURNAL FIELDS"))
    assert set(named) == fields | set(stopped)


@pytest.mark.skipif(not shutil.which("mandoc"), reason="needs mandoc")
def test_it_is_sound() -> None:
    assert run("mandoc", "-Tlint", "-W", "warning", PATH).stdout == ""
