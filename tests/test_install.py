"""`make install` and `make uninstall`, into a directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.daemon import PROJECT
from tests.namespace import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("prefix", ["/usr", "/usr/local"])
def test_units_run_what_is_installed_and_nothing_stays(tmp_path: Path, prefix: str) -> None:
    where = (f"DESTDIR={tmp_path}", f"PREFIX={prefix}")
    run("make", "-C", PROJECT, "install", *where)
    units = (tmp_path / prefix[1:] / "lib/systemd/system").iterdir()
    commands = [line for unit in units for line in unit.read_text().splitlines() if "bin/tcpwatchd " in line]
    assert len(commands) == 3
    assert all(f"{prefix}/bin/tcpwatchd " in line for line in commands)
    run("make", "-C", PROJECT, "uninstall", *where)
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
