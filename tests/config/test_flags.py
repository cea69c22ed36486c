"""Settings and the command line."""

from __future__ import annotations

import pytest

from tcpwatchd import __version__
from tcpwatchd.config import Settings, UsageError, parse_arguments


def test_defaults() -> None:
    assert parse_arguments([]) == Settings(
        interval=10.0,
        output="auto",
        report="opened",
        trace="auto",
        trace_instance=None,
        trace_buffer=None,
        message_owner=False,
        command_lines=False,
        trace_setup=False,
        once=False,
    )


def test_every_setting_has_its_flag() -> None:
    values = {
        "interval": "2.5",
        "output": "json",
        "report": "both",
        "trace": "no",
        "trace-instance": "x",
        "trace-buffer": "64",
    }
    flags = [f"--{name}={value}" for name, value in values.items()]
    assert parse_arguments(
        [*flags, "--once", "--trace-setup", "--message-owner", "--command-lines"]
    ) == Settings(
        interval=2.5,
        output="json",
        report="both",
        trace="no",
        trace_instance="x",
        trace_buffer=64,
        message_owner=True,
        command_lines=True,
        trace_setup=True,
        once=True,
    )


@pytest.mark.parametrize("text", ["0.1", "86400", "1e1"])
def test_intervals(text: str) -> None:
    assert parse_arguments(["--interval", text]).interval == float(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--interval", "0.09"], ["--interval", "0.1", "86400", "'0.09'"]),
        (["--interval", "86401"], ["--interval"]),
        (["--interval", "-1"], ["--interval", "'-1'"]),
        (["--interval", "nan"], ["--interval"]),
        (["--interval", "inf"], ["--interval"]),
        (["--interval", "ten"], ["--interval", "'ten'"]),
        (["--interval", ""], ["--interval"]),
        (["--interval"], ["--interval"]),
        (["--output", "syslog"], ["--output", "'syslog'", "journal"]),
        (["--trace", "yes"], ["--trace", "'yes'", "require"]),
        (["--trace-instance", "../up"], ["--trace-instance", "'../up'"]),
        (["--trace-instance", ""], ["--trace-instance"]),
        (["--trace-buffer", "15"], ["--trace-buffer", "16", "16384"]),
        (["--trace-buffer", "65536"], ["--trace-buffer", "16384", "'65536'"]),
        (["--trace-buffer", "-512"], ["--trace-buffer"]),
        (["--out", "json"], ["--out"]),
        (["--verbose"], ["--verbose"]),
        (["extra"], ["extra"]),
        (["--once=yes"], ["--once"]),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_flag(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        parse_arguments(arguments)
    assert "\n" not in str(raised.value)
    assert all(word in str(raised.value) for word in words)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, text in (("--version", f"tcpwatchd {__version__}"), ("--help", "--interval SECONDS")):
        with pytest.raises(SystemExit) as exit_info:
            parse_arguments([flag])
        assert exit_info.value.code == 0
        assert text in capsys.readouterr().out
