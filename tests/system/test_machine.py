"""Both units on Debian's own kernel in a virtual machine: what a container forgives, a machine refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fill_journal import OFFERS
from tests.port_scans import FIREWALLS, KINDS
from tests.system.inside import FEW, MANY, SHORT
from tests.system.inside_closings import COUNT
from tests.system.machine import run_inside
from tests.system.packages import Workshop

LATE = 3
ALL = {"opened": SHORT, "reported": SHORT, "same": True, "by": ["trace"]}


@pytest.mark.machine
def test_a_cpu_that_comes_later(tmp_path: Path) -> None:
    results = run_inside("bookworm", "tests.system.inside.late_cpu", "maxcpus=1", tmp_path)
    assert results["online at first"] == "0"
    assert results["on cpu 0"] == ALL
    assert results["idle share"] < 0.5, (
        "an offline CPU's descriptor answers at once, and must not make it spin"
    )
    assert results["on cpu 1"] == ALL
    assert results["capabilities"] == ["0" * 16]
    assert results["status"].startswith("Trace, and polling")
    assert results["instance left"] is False


@pytest.mark.machine
def test_lockdown(tmp_path: Path) -> None:
    """And a kernel without IPv6: both are told once, and the service runs."""
    results = run_inside(
        "bookworm", "tests.system.inside.lockdown", "lockdown=confidentiality ipv6.disable=1", tmp_path
    )
    assert results["tcp6"] is False
    assert len(results["no ipv6"]) == 1
    assert "[confidentiality]" in results["lockdown"]
    assert results["active"] == "active"
    assert len(results["said"]) == 1
    assert results["failed units"] == ""


@pytest.mark.machine
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_the_package_on_a_real_machine(suite: str, tmp_path: Path) -> None:
    workshop = Workshop(suite)
    package = Path(shutil.copy(workshop.build_deb(), tmp_path))
    workshop.remove()
    results = run_inside(suite, "tests.system.inside.packaged", "", tmp_path, package)
    assert results["units"] == ["active", "active"]
    assert results["capabilities"] == ["0" * 16]
    assert results["status"].startswith("Trace, and polling")
    for step in ("at first", "clock forward", "clock back", "one cpu", "both again", "restart"):
        assert results[step] == {"opened": FEW, "reported": FEW, "same": True, "by": ["trace"]}, step
    assert results["idle share"] < 0.5
    assert results["warnings"].replace("-- No entries --", "").strip() == ""
    # Another one, in the foreground, has two probes of its own, and the next one clears up after a crash.
    assert [len(probes) for probes in results["probes"]] == [2, 4, 4, 4, 2]
    assert all(results["probes"][0][0] in probes for probes in results["probes"])
    assert results["left"] == []


@pytest.mark.machine
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_journald_stands_still(suite: str, tmp_path: Path) -> None:
    """Here the send buffer is what is full first."""
    results = run_inside(suite, "tests.system.inside.journald_stands_still", "", tmp_path)
    print(results)
    everything = {"opened": MANY, "reported": MANY, "same": True, "by": ["trace"]}
    assert results["same process"]
    assert "; waiting to be written: " in results["status"]
    assert results["it goes on"] == everything
    assert results["seconds to stop"] < 2
    assert results["result"] == "success"
    assert results["it is started again"] == everything
    assert results["restarts"] == "0"
    large = results["a large entry"]
    assert large["refused"] == [False] * OFFERS
    assert large["slowest"] < 1
    assert large["written"] == large["taken"] + 1


@pytest.mark.machine
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_owners_are_told_by_the_kernel(suite: str, tmp_path: Path) -> None:
    """Every user, unit, container, name and process of 500 clients, and every listener's user and unit."""
    results = run_inside(suite, "tests.system.inside_owners.owners", "", tmp_path)
    print(results)
    assert results["clients"] == 500
    assert results["servers"] == 500
    assert results["wrong"] == []
    # The daemon is killed meanwhile, which can lose records that it had read, and they are counted. Of an
    # accepting end that comes late on a slow machine nothing is told.
    assert results["not known"] <= results["lost"] + LATE
    assert 500 - results["processes"] - results["threads"] <= results["lost"]
    # The remote's are no sockets of this kernel: who listens is told with its process too.
    assert results["remote"] == {
        "ingress backup.service root python3 True": 20,
        "egress backup.service root python3 True": 20,
        "egress blog.service www-data bash False": 1,
    }
    offsets = results["wrong offsets"]
    assert offsets.pop("") == "proved"
    assert len(offsets) == 14
    assert all(said.startswith("the event probe does not tell what it should") for said in offsets.values())
    assert all(found and "No entries" not in found for found in results["readme"].values())
    report = results["report"]
    assert report["counted"] == report["entries"]
    assert {"web.service", "user@1001.service/mine.service", "job@x\\x2dy.service", "shell.scope"} <= set(
        report["counted"]
    )
    assert report["filtered"] == 1
    assert results["rules"]["told"] == [["loud.service", "4"], ["plain.service", "6"]]
    assert "1 by /etc/tcpwatchd/tcpwatchd.conf.d/rules.conf:2" in results["rules"]["counted"]


@pytest.mark.machine
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_how_each_connection_closed_is_told(suite: str, tmp_path: Path) -> None:
    """Of a thousand, closed in every way: once, when, how, and how many bytes each end sent."""
    results = run_inside(suite, "tests.system.inside_closings.closings", "", tmp_path)
    print(results)
    assert results["at first"] == {"made": 100, "opened": 100, "closed": 0}
    assert results["second set-up"] == 1
    assert results["at second"] == results["at first"]
    assert results["connections"] == COUNT
    assert results["faults"] == []
    assert results["closed"] == {"made": 100, "opened": 0, "closed": 100}
    assert results["gaps"] == 0
    assert results["warnings"].replace("-- No entries --", "").strip() == ""
    assert all(found and "No entries" not in found for found in results["readme"].values())


@pytest.mark.machine
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_what_is_told_of_port_scans(suite: str, tmp_path: Path) -> None:
    """Linux 6.1 tells nothing of closed ports, 6.12 of all."""
    more = ",nmap,nftables,iproute2"
    results = run_inside(suite, "tests.system.inside_scans.scans", "", tmp_path, more=more, seconds=400)
    print(results)
    assert results["resets"] == (suite == "trixie")
    assert results["scans"] == 2 * len(FIREWALLS) * len(KINDS)
    assert results["wrong"] == []
    assert results["units"] == "active"


@pytest.mark.machine
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_the_metrics_are_for_who_may_have_them(suite: str, tmp_path: Path) -> None:
    """A container has neither systemd's firewall nor its bounds of memory."""
    results = run_inside(suite, "tests.system.inside_metrics.who_may_scrape", "", tmp_path)
    answers = [results[name] for name in ("as it stands", "allowed", "other", "here")]
    assert answers == ["HTTP/1.0 200 OK"] * 2 + ["TimeoutError"] * 2
    assert set(results["capabilities"]) == {"0" * 16}
    assert (results["failed units"], results["said"]) == ("", "")
    assert "0.2 SAFE" in results["exposure"]
    assert int(results["MemoryCurrent"]) < 32 << 20
