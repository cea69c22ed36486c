"""The bar comes to whoever waits at a terminal, and nothing else does."""

from __future__ import annotations

import os
import pty
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.report.program import COMMAND, ENVIRONMENT, write_many

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.journals
FORMS: tuple[list[str], ...] = (["--json"], ["--html", "-"], [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("short")
    write_many(made / "short.journal", 20)
    return made


def read_terminal(folder: Path, form: list[str], **environment: str) -> tuple[int, bytes]:
    """The status, and what comes on standard error, which is a terminal."""
    leader, follower = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "-D", str(folder), *form],
        env={**ENVIRONMENT, "TERM": "xterm", **environment},
        stdout=subprocess.DEVNULL,
        stderr=follower,
        check=False,
        timeout=60,
    )
    os.write(follower, b"END")
    os.close(follower)
    shown = b""
    while not shown.endswith(b"END"):
        shown += os.read(leader, 4096)
    os.close(leader)
    return done.returncode, shown.replace(b"END", b"")


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_nothing_is_drawn_before_anybody_waits(folder: Path, form: list[str]) -> None:
    assert read_terminal(folder, form) == (0, b"")


@pytest.mark.parametrize("form", FORMS[:2], ids=" ".join)
def test_without_rich_there_is_no_bar_but_a_report(folder: Path, tmp_path: Path, form: list[str]) -> None:
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError(\"No module named 'rich'\", name='rich')\n")
    path = f"{tmp_path}:{ENVIRONMENT['PYTHONPATH']}"
    assert read_terminal(folder, form, PYTHONPATH=path) == (0, b"")
