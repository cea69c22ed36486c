"""`make install` and `make uninstall`, into a directory."""

from __future__ import annotations

import re
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
    units = list((tmp_path / prefix[1:] / "lib/systemd/system").iterdir())
    assert {unit.name for unit in units} == {
        path.name for path in (PROJECT / "systemd").iterdir() if path.suffix in (".service", ".socket")
    }
    commands = [line for unit in units for line in unit.read_text().splitlines() if "bin/tcpwatchd " in line]
    assert len(commands) == 4
    assert all(f"{prefix}/bin/tcpwatchd " in line for line in commands)
    (exporter,) = [
        line.partition("=")[2]
        for unit in units
        for line in unit.read_text().splitlines()
        if line.startswith("ExecStart=") and "libexec" in line
    ]
    assert exporter == f"{prefix}/libexec/tcpwatchd/tcpwatchd-metrics"
    program = tmp_path / exporter[1:]
    assert program.stat().st_mode & 0o777 == 0o755
    assert f'"{prefix}/lib/tcpwatchd"' in program.read_text()
    share = tmp_path / prefix[1:] / "share"
    page = (share / "man/man5/tcpwatchd.conf.5").read_text()
    (examples,) = re.findall(r"^\.It Pa /(.*/examples)$", page, re.MULTILINE)
    installed, ours = (
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / examples, PROJECT / "packaging/examples")
    )
    assert installed == ours
    assert (share / "bash-completion/completions/tcpwatchd").exists()
    run("make", "-C", PROJECT, "uninstall", *where)
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
    assert not list(tmp_path.rglob("tcpwatchd*"))


def test_a_configuration_is_neither_overwritten_nor_removed(tmp_path: Path) -> None:
    where = (f"DESTDIR={tmp_path}", "PREFIX=/usr/local")
    ours, drop_in = (
        tmp_path / "etc/tcpwatchd/tcpwatchd.conf",
        tmp_path / "usr/lib/tcpwatchd/tcpwatchd.conf.d/x.conf",
    )
    run("make", "-C", PROJECT, "install", *where)
    assert ours.read_bytes() == (PROJECT / "packaging/tcpwatchd.conf").read_bytes()
    for path in (ours, drop_in):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[Watch]\nInterval=5s\n")
    run("make", "-C", PROJECT, "install", *where)
    said = run("make", "-s", "-C", PROJECT, "uninstall", *where).stdout
    assert f"{ours} was changed, and stays" in said
    for path in (ours, drop_in):
        assert path.read_text() == "[Watch]\nInterval=5s\n"


def test_the_configuration_can_be_elsewhere(tmp_path: Path) -> None:
    """As for a package whose files are staged in another way."""
    run("make", "-C", PROJECT, "install", f"DESTDIR={tmp_path}", "SYSCONFDIR=/usr/share/factory/etc")
    assert (tmp_path / "usr/share/factory/etc/tcpwatchd/tcpwatchd.conf").exists()
    assert not (tmp_path / "etc").exists()
