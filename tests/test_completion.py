"""Completion in bash, without any other script."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.config.settings import SETTINGS
from tests.daemon import PROJECT, run_program
from tests.namespace import run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
SCRIPT = """
source "$1" && shift
COMP_WORDS=(tcpwatchd "$@") COMP_CWORD=$#
complete -p tcpwatchd >&2
_tcpwatchd
printf '%s\\n' "${COMPREPLY[@]}"
"""


def complete(*words: str) -> list[str]:
    """What the last of the words can become."""
    result = run("bash", "--norc", "-uc", SCRIPT, "bash", PROJECT / "packaging/completions/tcpwatchd", *words)
    assert result.stderr == "complete -F _tcpwatchd tcpwatchd\n"
    return [line for line in result.stdout.splitlines() if line]


def test_every_flag() -> None:
    flags = set(re.findall(r"--[a-z0-9-]+", run_program("--help").stdout))
    for words in [("",), ("--",), ("--once", ""), ("--interval", "5", "--")]:
        assert set(complete(*words)) == flags


def test_flags_that_begin_so() -> None:
    assert complete("--trace-") == ["--trace-instance", "--trace-buffer", "--trace-setup"]
    assert complete("--no-m") == ["--no-message-owner"]
    assert complete("--xyz") == []


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_every_value(setting: object) -> None:
    flag, form, is_switch = setting.flag, setting.form, setting.is_switch  # type: ignore[attr-defined]
    words = [word for word in form.split("|") if word.islower()]
    if not is_switch:
        assert complete(flag, "") == complete(flag, "=") == complete(flag, "=", "") == words


def test_values_that_begin_so() -> None:
    assert complete("--report", "c") == complete("--report", "=", "c") == ["closed"]
    assert complete("--output", "x") == []


@pytest.mark.parametrize("flag", ["--config", "--check-config"])
def test_files(tmp_path: Path, flag: str) -> None:
    for name in ("a b.conf", "a.conf", "other"):
        (tmp_path / name).touch()
    found = {f"{tmp_path}/{name}" for name in ("a b.conf", "a.conf")}
    assert set(complete(flag, f"{tmp_path}/a")) == set(complete(flag, "=", f"{tmp_path}/a")) == found


def test_the_file_to_check_can_be_left_out() -> None:
    assert complete("--check-config", "--tr") == complete("--tr")
    assert complete("--config", "--tr") == []
