"""The man pages say what the program does."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tcpwatchd.config.files import DROP_IN_FOLDERS, MAIN, MAIN_FOLDER, MOST_BYTES
from tcpwatchd.config.flags import load, parse_arguments
from tcpwatchd.config.settings import RULE_HELP, RULES_SECTION, SCAN_SECTION, SECTIONS, SETTINGS, Setting
from tcpwatchd.connection import Closed, Owner, PortScan
from tcpwatchd.output import event
from tcpwatchd.output.metrics import METRICS, PREFIX
from tcpwatchd.policy.expression import DEEPEST, SYMBOLS, WORDS
from tcpwatchd.policy.folding import MOST_GROUPS
from tcpwatchd.policy.scans import MOST_SCANS
from tcpwatchd.policy.sources import MOST_SINGLE, MOST_SOURCES
from tcpwatchd.report.__main__ import MOST_ROWS
from tcpwatchd.report.summary import MOST_NAMES, MOST_OPEN
from tests.daemon import Daemon, run_program
from tests.kept import CONNECTION
from tests.namespace import run

PACKAGING = Path(__file__).parents[1] / "packaging"
PATHS = PACKAGING / "tcpwatchd.8", PACKAGING / "tcpwatchd.conf.5", PACKAGING / "tcpwatchd-report.1"
PAGE, FILE_PAGE, REPORT_PAGE = (path.read_text() for path in PATHS)
EXAMPLES = [
    block.replace("\\e", "\\")
    for page in (PAGE, FILE_PAGE)
    for block in re.findall(r"^\.Bd .*\n(\[[^]]+\]\n(?s:.*?))\.Ed$", page, re.MULTILINE)
]
"""Of configuration files."""


def read_section(name: str, page: str = PAGE) -> str:
    return page.split(f".Sh {name}\n")[1].partition("\n.Sh ")[0]


def read_item(head: str, page: str) -> tuple[str, str]:
    """The rest of the line that begins an item, and its text."""
    form = rf"^\.It {re.escape(head)}(?![-\w]) ?(.*)\n((?s:.*?))(?=^\.It |^\.El)"
    (found,) = re.findall(form, page, re.MULTILINE)
    return found[0], found[1]


def strip_macros(line: str) -> str:
    return re.sub(r"\b(Fl|Cm|Ar|Ns) |\s", "", line)


def test_every_flag_and_no_other() -> None:
    flags = set(re.findall(r"--[a-z0-9-]+", run_program("--help").stdout))
    items = re.findall(r"^\.It (Fl .*)$", read_section("DESCRIPTION"), re.MULTILINE)
    assert {f"-{name}" for item in items for name in re.findall(r"Fl (-\S+)", item)} == flags
    synopsis = {f"-{name}" for name in re.findall(r"Fl (-\S+)", read_section("SYNOPSIS"))}
    switches = {name for name in synopsis if "[no-]" in name}
    synopsis -= switches
    synopsis |= {name.replace("[no-]", no) for name in switches for no in ("", "no-")}
    assert synopsis == flags


def test_every_flag_of_the_report() -> None:
    told = run(sys.executable, "-m", "tcpwatchd.report", "--help", cwd=PACKAGING.parent).stdout
    flags = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", told))
    for section in ("SYNOPSIS", "DESCRIPTION"):
        lines = re.findall(r"^\.(?:Op|It|Fl) .*$", read_section(section, REPORT_PAGE), re.MULTILINE)
        named = re.findall(r"(?:Fl|[|,]) (-?[a-z]+)\b", "\n".join(lines))
        assert {f"-{name}" for name in named} == flags - {"-h"}
    assert f"{2 * MOST_NAMES:,} names" in REPORT_PAGE
    assert f"last {MOST_OPEN:,} at least" in REPORT_PAGE
    assert f"up to {MOST_ROWS}" in REPORT_PAGE


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_every_value_and_default(setting: Setting) -> None:
    rest, of_flag = read_item(f"Fl {setting.flag[1:]}", PAGE)
    assert strip_macros(rest) == (f",-no{setting.flag[1:]}" if setting.is_switch else setting.form)
    section = FILE_PAGE.split(f".Ss Section [{setting.section}]\n")[1].partition("\n.Ss ")[0]
    rest, of_key = read_item(f"Cm {setting.key}=", section)
    assert strip_macros(rest) == setting.form
    for text in (of_flag, of_key):
        default = re.findall(r"^The default is\n\.Cm (\S+) \.$", text, re.MULTILINE)
        assert default == ([] if setting.default is None else [setting.default])


def test_every_key_and_no_other() -> None:
    text = read_section("SETTINGS", FILE_PAGE)
    assert re.findall(r"^\.Ss Section \[(\w+)\]$", text, re.MULTILINE) == list(SECTIONS)
    keys = []
    for section in SECTIONS:
        keys += [setting.key for setting in SETTINGS if setting.section == section]
        keys += RULE_HELP if section == RULES_SECTION else []
    assert re.findall(r"^\.It Cm (\w+)=", text, re.MULTILINE) == keys


def test_every_word_of_the_grammar_and_no_other() -> None:
    rules = read_section("RULES", FILE_PAGE)
    (grammar,) = re.findall(r"^expression = (?s:.*?)^\.Ed$", rules, re.MULTILINE)
    assert set(re.findall(r'"(\w+)"', grammar)) == {*WORDS, "and", "or"}
    items = " ".join(re.findall(r"^\.It (.*)$", rules, re.MULTILINE))
    assert set(re.findall(r"\b[a-z0-9]+\b", items)) == {*WORDS} - {"not"}
    for symbol in SYMBOLS:
        assert re.search(rf"^\.Ql (\\&)?{re.escape(symbol)}( ,)?$", rules, re.MULTILINE)


def test_what_a_reload_changes() -> None:
    text = read_section("RELOAD", FILE_PAGE)
    form = r"^A reload changes\n\.Cm (.*) ,\nthe rules, and all of\n\.Ql \[(\w+)\]\nbut\n\.Cm (.*) \.$"
    ((named, section, but),) = re.findall(form, text, re.MULTILINE)
    changed = {one.key for one in SETTINGS if one.section == section} - set(re.findall(r"\w+", but))
    changed.update(re.findall(r"\w+", named))
    assert (section, changed) == (SCAN_SECTION, {one.key for one in SETTINGS if not one.needs_restart})
    others = " ".join(re.findall(r"^\.It Cm (.*)$", text, re.MULTILINE))
    assert set(re.findall(r"\w+", others)) == {one.key for one in SETTINGS if one.needs_restart}


def test_files_and_bounds() -> None:
    places = [f"/{folder}/{MAIN}.d/*.conf" for folder in reversed(DROP_IN_FOLDERS)]
    listed = re.findall(r"^\.Pa (.*)$", read_section("SYNOPSIS", FILE_PAGE), re.MULTILINE)
    assert listed == [f"/{MAIN_FOLDER}/{MAIN}", *places]
    assert f"Up to {DEEPEST} parentheses" in FILE_PAGE
    assert f"At most {MOST_GROUPS:,} kinds" in FILE_PAGE
    assert f"at most {MOST_BYTES >> 20} MiB" in FILE_PAGE
    bounds = f"Of {MOST_SINGLE:,} sources that tried one port and {MOST_SOURCES:,} that tried more"
    assert bounds in FILE_PAGE
    assert f"{MOST_SCANS:,} scans are followed at once" in FILE_PAGE
    assert event.MOST_LISTED == 100
    assert "of more than a hundred ranges, or addresses, the rest is" in PAGE


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_is_accepted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "example.conf"
    path.write_text(text)
    settings = load(parse_arguments(["--config", str(path)]))
    assert settings.rules or settings.given


def test_every_message_id() -> None:
    identifiers = {value for value in vars(event).values() if isinstance(value, str) and len(value) == 32}
    assert set(re.findall(r"\b[0-9a-f]{32}\b", read_section("MESSAGE IDS"))) == identifiers


def test_every_metric_and_no_other() -> None:
    text = read_section("METRICS")
    assert re.findall(r"^\.It Li (.*)$", text, re.MULTILINE) == [
        f"{PREFIX}{metric.name}" for metric in METRICS
    ]
    for metric in METRICS:
        _, item = read_item(f"Li {PREFIX}{metric.name}", text)
        assert item.startswith(f"A {metric.kind}")
        assert re.findall(r"^\.Li (\w+) [:.]$", item, re.MULTILINE) == [metric.label] * bool(metric.label)
        assert re.findall(r"^\.Ql (\w+) [,.]$", item, re.MULTILINE) == list(metric.values)


def test_every_field() -> None:
    daemon = Daemon("--output", "json", "--trace", "no", "--interval", "60")
    daemon.read_line()
    _, rest, _ = daemon.end(signal.SIGTERM)
    stopped = json.loads(rest.splitlines()[-1])
    others = [event.watch_started("0", 1, True, 0), event.trace_gap(0, 0), event.poll_failed("", 0)]
    others += [
        event.trace_used("", 1, True, None, None, 0),
        event.reloaded([], 0),
        event.reload_failed("", 0),
    ]
    everything = Owner._make(range(len(Owner._fields)))
    connection = CONNECTION._replace(owner=everything, listener=everything)
    closed = Closed(connection, 9, "fin", "both", 1, 2, "trace")
    others += [event.connection_opened(connection, 0), event.connection_closed(closed, 0, 0)]
    folded = [event.connections_opened(connection, 2, 0, 0), event.connections_closed(closed, 2, 0, 0)]
    names = "reported", "reported_closed", "folded", "folded_closed", "ignored"
    others += [*folded, event.connections_counted(0, [("x:1", 1)], 1, 1, dict.fromkeys(names, 1), 0)]
    here = [bytes((10, 0, 0, last)) for last in (1, 2)]
    scan = PortScan(bytes(16), (bytes(16), 64), 0, 0, [1], [2], here, False, False, "")
    others += [event.port_scan(one, 0, 0, 0) for one in (scan, scan._replace(destinations=here[:1]))]
    others += [event.scans_unfollowed(1, 0), event.resets_failed("", 0), event.resets_recovered(0)]
    fields = {name for made in others for name in made.fields}
    text = read_section("JOURNAL FIELDS")
    named = re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b|\bMESSAGE\b|\bPRIORITY\b", text)
    assert set(named) == fields | set(stopped)
    for made in (*folded, event.port_scan(scan, 0, 0, 0)):
        assert made.fields["EVENT_ACTION"] in text
        assert made.fields["MESSAGE_ID"] in text


@pytest.mark.skipif(not shutil.which("mandoc"), reason="needs mandoc")
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_they_are_sound(path: Path) -> None:
    assert run("mandoc", "-Tlint", "-W", "warning", path).stdout == ""
