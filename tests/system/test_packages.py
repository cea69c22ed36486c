"""Both packages: built in clean containers, installed, used, upgraded under load and taken away."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tcpwatchd import __version__
from tcpwatchd.output import event
from tests.namespace import Namespace, wait_until
from tests.system.container import PROJECT, REPORT, Container
from tests.system.load import PORTS, Load, join
from tests.system.packages import Workshop
from tests.system.service import count_lost, entries, list_instances, wait_until_gone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLDER = "0.0.9"
UNIT_DIR = "/usr/lib/systemd/system"
METRICS = "tcpwatchd-metrics"
ASK = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:10278/metrics').read().decode())"
"""As curl does it, which is not there."""


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def workshop(request: pytest.FixtureRequest) -> Iterator[Workshop]:
    """With the source at two places, and an older version of it at a third."""
    made = Workshop(request.param)
    made.copy_source("elsewhere/deeper")
    made.copy_source("older")
    made.set_version("older", OLDER)
    yield made
    made.remove()


@pytest.fixture(scope="module")
def packages(workshop: Workshop) -> tuple[Path, Path]:
    """The older one, and this one."""
    return workshop.build_deb("older"), workshop.build_deb("src")


def test_the_version_is_the_same_everywhere() -> None:
    changelog, debian, spec = (
        (PROJECT / name).read_text()
        for name in ("CHANGELOG.md", "packaging/debian/changelog", "packaging/tcpwatchd.spec")
    )
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == __version__
    assert re.findall(r"^tcpwatchd \((.*)-1\)", debian, re.MULTILINE)[0] == __version__
    assert re.findall(r"^Version: +(\S+)", spec, re.MULTILINE) == [__version__]
    assert re.findall(r"^\* .* - (.*)-1$", spec, re.MULTILINE)[0] == __version__


@pytest.mark.container
def test_the_deb_is_clean(workshop: Workshop, packages: tuple[Path, Path]) -> None:
    assert packages[1].exists()
    lint = "cd /src/dist && lintian --allow-root --fail-on error,warning *.changes 2>/dev/null"
    assert not re.search(r"^[EW]: ", workshop.run("sh", "-c", lint), re.MULTILINE)
    depends = workshop.run("sh", "-c", "dpkg-deb --field /src/dist/*.deb Depends").strip().split(", ")
    assert {"python3-systemd", "python3-sdnotify"} <= set(depends)
    assert workshop.run("sh", "-c", "man -l --warnings /src/packaging/tcpwatchd.8 2>&1 >/dev/null") == ""


@pytest.mark.container
def test_builds_are_reproducible(workshop: Workshop, packages: tuple[Path, Path]) -> None:
    assert workshop.build_deb("elsewhere/deeper").read_bytes() == packages[1].read_bytes()


@pytest.mark.container
@pytest.mark.parametrize("target", ["deb", "rpm"])
def test_missing_tools_are_named_in_one_line(target: str) -> None:
    with Container("bookworm") as bare:
        shutil.copytree(PROJECT / "packaging", bare.root / "src/packaging")
        shutil.copy(PROJECT / "Makefile", bare.root / "src/Makefile")
        if target == "rpm":
            (bare.root / "usr/bin/rpmbuild").unlink(missing_ok=True)
        bare.boot()
        result = bare.try_run("make", "-C", "/src", target)
    said = [line for line in result.stderr.splitlines() if not line.startswith("make: *** ")]
    needed = {"deb": "build-essential", "rpm": "rpm-build"}[target]
    assert [line for line in said if needed in line] == said
    assert len(said) == 1
    assert result.returncode != 0


@pytest.mark.container
@pytest.mark.trace
def test_the_life_of_the_deb(workshop: Workshop, packages: tuple[Path, Path]) -> None:
    with Container(workshop.suite, traced=True, more=REPORT) as machine, Namespace() as client:
        for package in packages:
            shutil.copy(package, machine.root / "root")
        machine.boot()
        install(machine, packages[0])
        assert machine.run("systemctl", "is-enabled", "tcpwatchd").strip() == "enabled"
        check_service(machine, OLDER)
        scraped = enable_metrics(machine)
        check_examples(machine.run("dpkg", "--listfiles", "tcpwatchd"))
        check_autopkgtest(machine)
        join(client, machine)
        trace = machine.show("tcpwatchd-trace", "ActiveEnterTimestampMonotonic"), list_instances()
        lost = count_lost(machine)
        config = machine.root / "etc/tcpwatchd/tcpwatchd.conf"
        config.write_text(config.read_text().replace("#Interval=10s", "Interval=7s"))
        missing, again = Load(machine, client).run(10, lambda: install(machine, packages[1]))
        assert entries(machine, event.WATCH_STARTED)[-1]["TCPWATCHD_INTERVAL"] == "7", (
            "it is the administrator's"
        )
        # The trace hears the whole machine, and what runs beside this test can be too much for its buffers.
        assert sum(missing.values()) <= count_lost(machine) - lost
        assert again == Counter()
        assert (
            machine.show("tcpwatchd-trace", "ActiveEnterTimestampMonotonic"), list_instances()
        ) == trace, "an upgrade leaves the oneshot alone"  # fmt: skip
        assert scrape(machine, __version__) != scraped, "another process"
        machine.run("systemctl", "restart", "tcpwatchd")
        check_service(machine, __version__)
        check_exposure(machine)
        machine.run("apt-get", "remove", "-y", "tcpwatchd")
        check_gone(machine, "/etc/tcpwatchd/tcpwatchd.conf")
        machine.run("apt-get", "purge", "-y", "tcpwatchd")
        check_gone(machine)
        assert machine.run("sh", "-c", "find / -xdev -name '*tcpwatchd*' -not -path '/root/*'").strip() == ""


def install(machine: Container, package: Path) -> None:
    machine.run("apt-get", "install", "-y", f"/root/{package.name}")
    wait_until(lambda: machine.show("tcpwatchd", "ActiveState") == "active", 20, "active")


def check_service(machine: Container, version: str) -> None:
    said = machine.run("journalctl", "-u", "tcpwatchd", "-u", "tcpwatchd-trace", "--no-pager")
    wait_until(lambda: entries(machine, event.TRACE_USED), 10, f"the trace in use; {said}")
    assert entries(machine, event.WATCH_STARTED)[-1]["TCPWATCHD_VERSION"] == version
    status = machine.run("cat", f"/proc/{machine.show('tcpwatchd', 'MainPID')}/status")
    assert re.findall(r"^CapEff:\t(\S+)$", status, re.MULTILINE) == ["0" * 16]
    assert machine.show("tcpwatchd-trace", "ActiveState") == "active"


def enable_metrics(machine: Container) -> str:
    """As in the README; the package leaves it off."""
    assert machine.try_run("systemctl", "is-enabled", f"{METRICS}.socket").stdout.strip() == "disabled"
    assert machine.show(f"{METRICS}.socket", "ActiveState") == "inactive"
    machine.run("systemctl", "enable", "--now", "--quiet", f"{METRICS}.socket")
    return scrape(machine, OLDER)


def scrape(machine: Container, version: str) -> str:
    """The process that answers."""
    assert f'tcpwatchd_build_info{{version="{version}"}} 1' in machine.run("python3", "-c", ASK)
    return machine.show(METRICS, "MainPID")


def check_examples(installed: str) -> None:
    ours = PROJECT / "packaging/examples"
    examples = {str(path.relative_to(ours)) for path in ours.rglob("*") if path.is_file()}
    listed = re.findall(r"^/usr/share/doc/.*/examples/(.*\.(?:conf|yml|json|gz))$", installed, re.MULTILINE)
    assert set(listed) == examples, "none of them compressed"


def check_autopkgtest(machine: Container) -> None:
    shutil.copy(PROJECT / "packaging/debian/tests/service", machine.root / "root/service")
    machine.run("sh", "-ec", "mkdir -p /usr/local/bin; printf '#!/bin/sh\\nls /usr/share/man/man8/$2.8.gz' "
                             "> /usr/local/bin/man; chmod 755 /usr/local/bin/man; /root/service")  # fmt: skip


def check_exposure(machine: Container) -> None:
    units = "tcpwatchd.service", "tcpwatchd-trace.service", f"{METRICS}.service", f"{METRICS}.socket"
    for unit in units:
        assert machine.run("systemd-analyze", "verify", "--recursive-errors=yes", "--man=no", unit) == ""
    machine.run("systemd-analyze", "security", "--threshold=10", "--no-pager", "tcpwatchd")
    machine.run("systemd-analyze", "security", "--threshold=2", "--no-pager", METRICS)


def check_gone(machine: Container, *but: str) -> None:
    wait_until_gone()
    for unit in ("tcpwatchd", "tcpwatchd-trace", f"{METRICS}.socket", f"{METRICS}.service"):
        assert machine.show(unit, "ActiveState") == "inactive"
    places = "/run/*tcpwatchd* /run/private/*tcpwatchd* /etc/*/*tcpwatchd*"
    left = machine.run("sh", "-c", f"ls -d {places} 2>/dev/null; :")
    assert set(left.split()) == set(but)


@pytest.mark.container
@pytest.mark.trace
def test_the_life_of_the_rpm() -> None:
    workshop = Workshop("bookworm")
    workshop.copy_source("older")
    workshop.set_version("older", OLDER)
    with Container("bookworm", traced=True) as machine, Namespace() as client:
        older, newer = workshop.build_rpm("older"), workshop.build_rpm("src")
        lint = "rpmlint --config /src/packaging/rpmlint.toml /src/dist/*.rpm /src/packaging/tcpwatchd.spec"
        assert "0 errors, 0 warnings" in workshop.run("sh", "-c", f"{lint}; :")
        for package in (older, newer):
            shutil.copy(package, machine.root / "root")
        workshop.remove()
        machine.boot()
        machine.run("rpm", "--install", "--nodeps", f"/root/{older.name}")
        assert machine.run("systemctl", "is-enabled", "tcpwatchd").strip() == "enabled", "Debian's preset"
        machine.run("systemctl", "enable", "--now", "tcpwatchd")
        check_service(machine, OLDER)
        scraped = enable_metrics(machine)
        check_examples(machine.run("rpm", "--query", "--list", "tcpwatchd"))
        join(client, machine)
        lost = Load(machine, client).run(
            10, lambda: print(machine.run("rpm", "--upgrade", "--nodeps", f"/root/{newer.name}"))
        )
        assert lost == (Counter(), Counter())
        check_service(machine, __version__)
        assert scrape(machine, __version__) != scraped, "another process"
        explained = machine.run("journalctl", "-x", "--no-pager", f"DESTINATION_PORT={min(PORTS)}")
        assert "A TCP connection from" in explained
        machine.run("rpm", "--erase", "tcpwatchd")
        check_gone(machine)
        assert (
            machine.try_run(
                "sh", "-c", "ls /usr/bin/tcpwatchd /usr/lib/systemd/*/*tcpwatchd* /usr/libexec/tcpwatchd"
            ).stdout
            == ""
        )
