"""The command line, and what it and the files say together."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tcpwatchd import __version__
from tcpwatchd.config.files import ConfigError
from tcpwatchd.config.flags import Settings, format_settings, load, parse_arguments
from tcpwatchd.config.settings import RULE_HELP, SECTIONS, SETTINGS, Setting
from tcpwatchd.failure import UsageError
from tcpwatchd.policy.folding import Limit
from tests.daemon import run_program

if TYPE_CHECKING:
    from pathlib import Path

CONF = "tcpwatchd/tcpwatchd.conf"
DEFAULTS: dict[str, Any] = {
    "interval": 10.0,
    "report": "opened",
    "command_lines": False,
    "message_owner": False,
    "output": "auto",
    "trace": "auto",
    "trace_instance": None,
    "trace_buffer": 512,
    "fold": None,
    "scan_enabled": True,
    "scan_ports": 3,
    "scan_window": 60_000_000_000,
    "scan_addresses": 20,
    "scan_slow_ports": 10,
    "scan_slow_window": 3_600_000_000_000,
    "scan_allow": None,
    "scan_ignore_ports": None,
    "scan_prefix6": 64,
}
OTHERS: dict[str, tuple[str, Any]] = {
    "interval": ("1min 30s", 90.0),
    "report": ("both", "both"),
    "command_lines": ("yes", True),
    "message_owner": ("on", True),
    "output": ("json", "json"),
    "trace": ("no", "no"),
    "trace_instance": ("x", "x"),
    "trace_buffer": ("4M", 4096),
    "fold": ("20/10s", Limit(20, 10_000_000_000)),
    "scan_enabled": ("no", False),
    "scan_ports": ("15", 15),
    "scan_window": ("5min", 300_000_000_000),
    "scan_addresses": ("no", None),
    "scan_slow_ports": ("100", 100),
    "scan_slow_window": ("1d", 86_400_000_000_000),
    "scan_allow": (
        "192.0.2.0/24 2001:db8::1",
        ((b"\xc0\0\2\0", b"\xc0\0\2\xff"), (2 * (bytes.fromhex("20010db8") + bytes(11) + b"\1",))),
    ),
    "scan_ignore_ports": ("50000-50100 6000", ((50000, 50100), (6000, 6000))),
    "scan_prefix6": ("48", 48),
}
"""Of each setting a text that says something else, and what it means."""
SOME = {"trace_instance": "other", "scan_allow": "10.0.0.0/8", "scan_ignore_ports": "1"}
"""Of those without a default something else again."""


def make_flags(setting: Setting) -> tuple[str, ...]:
    """That say so."""
    text, value = OTHERS[setting.name]
    if setting.is_switch:
        return (setting.flag if value else f"--no-{setting.flag[2:]}",)
    return setting.flag, text


def write(root: Path, name: str, *lines: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def find_values(settings: Settings) -> dict[str, Any]:
    return {setting.name: getattr(settings, setting.name) for setting in SETTINGS}


def find_rules(settings: Settings) -> list[tuple[str, str]]:
    return [(rule.action, rule.text) for rule in settings.rules]


# The command line.


def test_defaults(tmp_path: Path) -> None:
    settings = load(parse_arguments([]), str(tmp_path))
    assert find_values(settings) == DEFAULTS
    assert (settings.rules, settings.given, settings.wanted_buffer) == ([], {}, None)
    doing = settings.config, settings.check_config, settings.show_config, settings.trace_setup, settings.once
    assert doing == (None, False, False, False, False)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_every_setting_has_its_flag_and_its_key(tmp_path: Path, setting: Setting) -> None:
    text, value = OTHERS[setting.name]
    other = {**DEFAULTS, setting.name: value}
    flags = make_flags(setting)
    for arguments in (flags, ["=".join(flags)]):
        settings = load(parse_arguments(arguments), str(tmp_path))
        assert find_values(settings) == other
        assert settings.given[setting.name][2] == setting.flag
    path = write(tmp_path, f"etc/{CONF}", f"[{setting.section}]", f"{setting.key} = {text}")
    settings = load(parse_arguments([]), str(tmp_path))
    assert find_values(settings) == other
    assert settings.given[setting.name] == (value, text, f"{path}:2")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_flags_win_over_the_file(tmp_path: Path, setting: Setting) -> None:
    in_file = setting.default or SOME[setting.name]
    write(tmp_path, f"etc/{CONF}", f"[{setting.section}]", f"{setting.key}={in_file}")
    settings = load(parse_arguments(make_flags(setting)), str(tmp_path))
    assert getattr(settings, setting.name) == OTHERS[setting.name][1]
    assert settings.given[setting.name].source == setting.flag


def test_what_to_do() -> None:
    assert parse_arguments(["--once"]).once
    assert parse_arguments(["--trace-setup"]).trace_setup
    assert parse_arguments(["--show-config"]).show_config
    assert parse_arguments(["--check-config"]).check_config is True
    named = parse_arguments(["--check-config", "x"])
    assert (named.check_config, named.config) == ("x", "x")
    named = parse_arguments(["--check-config", "--config", "x"])
    assert (named.check_config, named.config) == (True, "x")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--interval", "0.09"], ["argument --interval: not a time span from 100ms to 1d: '0.09'"]),
        (["--interval", "-1"], ["--interval", "'-1'"]),
        (["--interval", ""], ["--interval", "''"]),
        (["--interval"], ["--interval"]),
        (["--output", "syslog"], ["--output", "'syslog'", "journal"]),
        (["--trace", "yes"], ["--trace", "'yes'", "require"]),
        (["--trace-instance", "../up"], ["--trace-instance", "'../up'"]),
        (["--trace-buffer", "15K"], ["argument --trace-buffer: not a size from 16K to 16M: '15K'"]),
        (["--trace-buffer", "512"], ["--trace-buffer", "'512'"]),
        (["--fold", "20"], ["argument --fold: not N/SPAN from 1/1s to", "'20'"]),
        (["--scan-ports", "0"], ["argument --scan-ports: not a number from 1 to 1000: '0'"]),
        (["--scan-addresses", "x"], ["--scan-addresses: not a number from 1 to 1000, nor no: 'x'"]),
        (["--scan-window", "0.9"], ["argument --scan-window: not a time span from 1s to 1d: '0.9'"]),
        (
            ["--scan-allow", "10.0.0.1/8"],
            ["--scan-allow: expected no bits after the first 8, as in 10.0.0.0/8"],
        ),
        (["--scan-ignore-ports", "9-8"], ["--scan-ignore-ports: not a port, nor a range", "'9-8'"]),
        (["--scan-prefix6", "129"], ["argument --scan-prefix6: not a number from 1 to 128: '129'"]),
        (["--ports", "3"], ["--ports"]),
        (["--message-owner=yes"], ["--message-owner", "'yes'"]),
        (["--config"], ["--config"]),
        (["--config", ""], ["--config", "expected the name of a file, found ''"]),
        (["--check-config", ""], ["--check-config", "expected the name of a file, found ''"]),
        (["--check-config", "x", "--config", "y"], ["--check-config FILE: not with --config"]),
        (["--config", "y", "--check-config=x"], ["--check-config FILE: not with --config"]),
        (["--out", "json"], ["--out"]),
        (["--verbose"], ["--verbose"]),
        (["extra"], ["extra"]),
        (["--once=yes"], ["--once"]),
        (["--ignore", "ip"], ["--ignore"]),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_flag(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        parse_arguments(arguments)
    assert "\n" not in str(raised.value)
    assert [word for word in words if word not in str(raised.value)] == []


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(["--version"])
    assert (exit_info.value.code, capsys.readouterr().out) == (0, f"tcpwatchd {__version__}\n")
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert exit_info.value.code == 0
    for setting in SETTINGS:
        default = f" (default: {setting.default})" if setting.default else ""
        form = f", --no-{setting.flag[2:]}" if setting.is_switch else f" {setting.form}"
        assert f"{setting.flag}{form} {setting.help}{default}" in text


# The files.


def test_the_later_file_wins_and_rules_follow_each_other(tmp_path: Path) -> None:
    write(
        tmp_path,
        f"etc/{CONF}",
        "[Rules]",
        "Ignore=ip",
        "[Watch]",
        "Interval=1s",
        "Interval=2s",
        "Report=both",
    )
    write(tmp_path, f"usr/lib/{CONF}.d/b.conf", "[Watch]", "Interval=4s", "[Rules]", "Notice=ip6")
    last = write(tmp_path, f"run/{CONF}.d/c.conf", "[Watch]", "Interval=5s", "[Rules]", "Report=here")
    write(tmp_path, f"etc/{CONF}.d/a.conf", "[Watch]", "Interval=3s", "[Rules]", "Warning=egress")
    settings = load(parse_arguments([]), str(tmp_path))
    assert (settings.interval, settings.report) == (5.0, "both")
    assert settings.given["interval"].source == f"{last}:2"
    expected = [("Ignore", "ip"), ("Warning", "egress"), ("Notice", "ip6"), ("Report", "here")]
    assert find_rules(settings) == expected
    assert [rule.line for rule in settings.rules] == [2, 4, 4, 4]


@pytest.mark.parametrize("mask", ["empty file", "link to /dev/null", "file of its own"])
def test_a_drop_in_of_the_same_name_takes_all_that_the_other_said(tmp_path: Path, mask: str) -> None:
    write(tmp_path, f"usr/lib/{CONF}.d/a.conf", "[Watch]", "Interval=1s", "[Rules]", "Ignore=ip")
    (tmp_path / f"etc/{CONF}.d").mkdir(parents=True)
    if mask == "link to /dev/null":
        (tmp_path / f"etc/{CONF}.d/a.conf").symlink_to("/dev/null")
    else:
        write(tmp_path, f"etc/{CONF}.d/a.conf", *["[Watch]", "Report=both"] * (mask == "file of its own"))
    settings = load(parse_arguments([]), str(tmp_path))
    assert (settings.interval, settings.rules) == (10.0, [])
    assert settings.report == ("both" if mask == "file of its own" else "opened")


def test_a_file_that_is_named_is_the_only_one(tmp_path: Path) -> None:
    write(tmp_path, f"etc/{CONF}", "nonsense")
    write(tmp_path, f"etc/{CONF}.d/a.conf", "nonsense")
    write(tmp_path, "x.conf.d/a.conf", "nonsense")
    path = write(tmp_path, "x.conf", "[Watch]", "Interval=3s")
    for arguments in (["--config", str(path)], ["--check-config", str(path)]):
        assert load(parse_arguments(arguments), str(tmp_path)).interval == 3.0
    with pytest.raises(ConfigError):
        load(parse_arguments([]), str(tmp_path))
    assert load(parse_arguments(["--config", os.devnull]), str(tmp_path)).interval == 10.0


def test_a_fault_in_the_file_is_told_though_a_flag_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "x.conf", "[Watch]", "Interval=never")
    with pytest.raises(ConfigError):
        load(parse_arguments(["--config", str(path), "--interval", "1s"]))


def test_a_rule_over_several_lines(tmp_path: Path) -> None:
    lines = (
        "[Rules]",
        "Ignore = \\",
        "  # the balancers",
        "  host 10.0.0.1 \\",
        "\tor host \\",
        "; 3",
        " 10.0.0.3",
    )
    path = write(tmp_path, "x.conf", *lines)
    (rule,) = load(parse_arguments(["--config", str(path)])).rules
    assert (rule.text, rule.line) == ("host 10.0.0.1 or host 10.0.0.3", 2)
    path.write_text(path.read_text().replace(" 10.0.0.3", " 10.0.0.333"))
    with pytest.raises(
        ConfigError, match=r":7:2: \[Rules\] Ignore=: expected an address, found '10.0.0.333'$"
    ):
        load(parse_arguments(["--config", str(path)]))


# What is shown.


@pytest.mark.parametrize("flags", [[], ["--interval=1h 5min", "--no-command-lines", "--fold", "5/1min 1s"]])
def test_what_is_shown_says_the_same_as_a_file(tmp_path: Path, flags: list[str]) -> None:
    for setting in SETTINGS:
        name = f"etc/{CONF}.d/{setting.key}.conf"
        write(tmp_path, name, f"[{setting.section}]", f"{setting.key}={OTHERS[setting.name][0]}")
    rules = [
        'process "a # b" or process "#" \\\n  and process "x\\"',
        'unit a\\x2db.service or process "\\"',
        "port 80\tor (\\\n# c\n  src port http)",
        "process é",
    ]
    lines = [f"{action}={rule}" for action, rule in zip(RULE_HELP, rules)]
    lines[0] = lines[0].replace(' or process "#"', "")
    write(tmp_path, f"etc/{CONF}.d/z\n[Bogus]\n.conf", "[Rules]", *lines)
    settings = load(parse_arguments(flags), str(tmp_path))
    shown = write(tmp_path, "shown.conf", format_settings(settings))
    again = load(parse_arguments(["--config", str(shown)]))
    assert find_values(again) == find_values(settings)
    assert find_rules(again) == find_rules(settings)
    assert len(again.rules) == 4
    assert format_settings(again).count("\n") == format_settings(settings).count("\n")


def test_what_is_shown_says_where_it_is_from(tmp_path: Path) -> None:
    path = write(
        tmp_path, f"etc/{CONF}", "[Watch]", "Interval=1s", "[Rules]", "", "Ignore=ip", "Notice=\\", "ip6"
    )
    settings = load(parse_arguments(["--output", "json", "--no-message-owner"]), str(tmp_path))
    shown = format_settings(settings)
    for text in (
        f"# {path}:2\nInterval=1s\n",
        f"# {path}:5\nIgnore=ip\n# {path}:6\nNotice=ip6",
        "# --output\nOutput=json\n",
        "# --message-owner\nMessageOwner=no\n",
        "# default\nReport=opened\n",
        "# default\n#TraceInstance=\n",
    ):
        assert text in shown
    assert [line for line in shown.split("\n") if line.startswith("[")] == [f"[{name}]" for name in SECTIONS]


def test_the_program_shows_and_checks(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\x1b\n.conf")
    path = str(write(tmp_path, name, "[Rules]", "Warning=process café"))
    shown = run_program("--config", path, "--show-config", "--interval", "3s", encoding="utf-8")
    assert (shown.returncode, shown.stderr) == (0, "")
    settings = load(parse_arguments(["--config", path, "--interval", "3s"]))
    assert shown.stdout == format_settings(settings) + "\n"
    assert "\\udcff\\x1b\\n.conf:2\nWarning=process café\n" in shown.stdout
    for arguments in (["--check-config", path], ["--check-config", "--config", path]):
        done = run_program(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, "OK\n", "")
