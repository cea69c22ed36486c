"""The report of what a service in a container wrote of real connections, and its page in a browser."""

from __future__ import annotations

import json
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tcpwatchd.output import event
from tests.namespace import enter_network, run, wait_until
from tests.report.screenshots import PICTURES, look_at
from tests.system.container import PROJECT, REPORT, Container
from tests.system.service import count_lost, count_reported, write_settings
from tests.test_readme import read_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MANY, RATE = 100_000, 4_000
PORTS = 7101, 7102, 7103, 7104, 7105

pytestmark = [pytest.mark.container, pytest.mark.trace, pytest.mark.journals, pytest.mark.alone]


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    """With a service that has reported many connections."""
    with Container("bookworm", traced=True, more=REPORT) as booted:
        booted.install()
        write_settings(booted, "report", "[Watch]\nReport=both\n[Trace]\nTraceBuffer=4M\n")
        booted.boot()
        booted.run("systemctl", "start", "tcpwatchd")
        load = [sys.executable, "-m", "tests.report.load", str(MANY), str(RATE), *map(str, PORTS)]
        made = json.loads(run(*enter_network(booted.leader), *load, cwd=PROJECT).stdout)
        assert sum(made.values()) == MANY
        wait_until(lambda: count_reported(booted) + count_lost(booted) >= MANY, 120, "all written")
        booted.run("systemctl", "stop", "tcpwatchd")
        booted.run("journalctl", "--sync")
        yield booted


@pytest.fixture(scope="module")
def report(container: Container) -> Any:
    return json.loads(container.run("tcpwatchd-report", "-b", "--json", "--top", "100"))


def test_every_connection_is_counted_once(container: Container, report: Any) -> None:
    ports = {row["name"]: row for row in report["ports"]["top"]}
    counted = sum(ports[str(port)]["connections"] for port in PORTS)
    lost = count_lost(container)
    print(f"{counted} of {MANY}, {lost} records lost")
    assert MANY - lost <= counted <= MANY
    assert report["connections"]["all"] == report["connections"]["internal"] + sum(
        report["connections"][name] for name in ("ingress", "egress")
    )
    said = container.run("journalctl", "-b", "-o", "cat", f"MESSAGE_ID={event.CONNECTION_OPENED}")
    assert report["connections"]["all"] == len(said.splitlines())
    assert report["missed"]["records_lost"] == lost
    assert report["not_counted"]["faults"] == []


def test_commands_of_the_readme(container: Container) -> None:
    (commands,) = read_blocks("Report")
    for command in commands:
        said = container.run("sh", "-c", f"cd /root && {command}")
        assert said or "--html" in command
    assert (container.root / "root/report.html").exists()


def test_the_page_in_a_browser(container: Container, tmp_path: Path) -> None:
    container.run("tcpwatchd-report", "-b", "--html", "/root/page.html")
    page = tmp_path / "page.html"
    shutil.copy(container.root / "root/page.html", page)
    for picture in PICTURES:
        seen = look_at(page, picture, tmp_path / f"{picture.name}.png")
        assert seen.console == []
        assert seen.width <= picture.width, "nothing to scroll sideways"
        assert (tmp_path / f"{picture.name}.png").stat().st_size > 10_000
    for port in PORTS:
        assert re.search(rf"<td[^>]*>{port}</td>", seen.document)
