"""What is made of the table of settings is up to date, and says what holds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.config.flags import load, parse_arguments
from tcpwatchd.config.settings import BY_KEY, RULE_HELP, RULES_SECTION, SECTIONS, SETTINGS
from tcpwatchd.config.values import BUFFER_RANGE, FOLD_ENTRIES, FOLD_RANGE, INTERVAL_RANGE, parse_span
from tests.daemon import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

    from tcpwatchd.config.flags import Settings

SHIPPED = PROJECT / "packaging/tcpwatchd.conf"
COMMENTED_OUT = re.compile(r"^#(?=\w+=.)", re.MULTILINE)
"""Before a setting that has a value."""


def load_file(path: Path) -> Settings:
    return load(parse_arguments(["--config", str(path)]))


def test_what_is_made_of_the_table_is_up_to_date() -> None:
    """If this fails: `make docs`."""
    command = [sys.executable, "packaging/settings.py", "--check"]
    environment = {**os.environ, "PYTHONPATH": ".", "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_shipped_file_changes_nothing() -> None:
    settings = load_file(SHIPPED)
    assert settings.given == {}
    assert settings.rules == []


def test_what_is_commented_out_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "tcpwatchd.conf"
    path.write_text(COMMENTED_OUT.sub("", SHIPPED.read_text()))
    settings, defaults = load_file(path), load_file(SHIPPED)
    for setting in SETTINGS:
        assert getattr(settings, setting.name) == getattr(defaults, setting.name)
        assert (setting.name in settings.given) == (setting.default is not None)
    assert {rule.action for rule in settings.rules} <= set(RULE_HELP)
    assert settings.rules != []


def test_the_shipped_file_has_every_setting_in_its_section() -> None:
    section, found = "", []
    for line in SHIPPED.read_text().splitlines():
        section = line[1:-1] if line.startswith("[") else section
        key = re.match(r"#(\w+)=", line)
        if key and (section != RULES_SECTION or key[1] not in RULE_HELP):
            found.append((section, key[1]))
    assert found == list(BY_KEY)
    assert re.findall(r"^\[(\w+)\]$", SHIPPED.read_text(), re.MULTILINE) == list(SECTIONS)
    assert all(len(line) < 80 for line in SHIPPED.read_text().splitlines())


def test_ranges_are_as_told() -> None:
    told = {setting.key: f"{setting.help} {setting.details}" for setting in SETTINGS}
    (interval,) = re.findall(r"(\w+) to (\w+)", told["Interval"])
    assert tuple(map(parse_span, interval)) == INTERVAL_RANGE
    assert f"{BUFFER_RANGE[0]}K to {BUFFER_RANGE[1] // 1024}M" in told["TraceBuffer"]
    (span,) = re.findall(r"time is (\w+) to (\w+)", told["Fold"])
    assert tuple(map(parse_span, span)) == FOLD_RANGE
    assert f"N {FOLD_ENTRIES[0]} to {FOLD_ENTRIES[1]}." in told["Fold"]


@pytest.mark.parametrize("name", ["systemd/tcpwatchd.catalog", "README.md", "packaging/tcpwatchd.8"])
def test_each_setting_that_is_named_is_there(name: str) -> None:
    """Or it is one of systemd's; and nothing was left to be filled in."""
    text = (PROJECT / name).read_text()
    ours = {setting.key for setting in SETTINGS} | set(RULE_HELP)
    named = set(re.findall(r"(?<![\w.])([A-Z][a-z]+(?:[A-Z][a-z]+)*)=", text))
    assert named - ours <= OF_SYSTEMD
    assert not re.search(r"@[A-Z]+@", text) or name.endswith("catalog")
    assert not re.search(r"\b(?:REPORT|TRACE_BUFFER)\b", text)


OF_SYSTEMD = {
    "LogNamespace",
    "SystemMaxUse",
    "MaxRetentionSec",
    "Environment",
    "ExecStart",
    "ExecReload",
    "DynamicUser",
}
