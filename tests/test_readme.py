"""Every command of the README, as written, in its order."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tcpwatchd.output import event
from tests.holder import Traffic
from tests.namespace import Namespace, run, wait_until
from tests.system.container import REPORT, Container, copy_source
from tests.system.packages import STUBS, Workshop
from tests.system.service import entries

PROJECT = Path(__file__).parents[1]
HOST, PEER = "10.77.0.1", "10.77.0.2"
README = (PROJECT / "README.md").read_text()
MAN_EXAMPLES = re.findall(r"^\.Dl # (.*)$", (PROJECT / "packaging/tcpwatchd.8").read_text(), re.MULTILINE)
ENDLESS = {"journalctl -t tcpwatchd -f", "tcpwatchd --output json"}
RUN = ("Install", "Install from the source", "Read", "Configure", "Upgrade and remove")
"""Sections whose commands are run in containers."""
IN_MACHINES = ("Who", "How long, how much")
"""Run in a virtual machine (tests/system/test_machine.py), whose kernel tells of owners and of bytes."""
WITH_FAIL2BAN = ("Port scans",)
"""Run beside it (tests/system/test_fail2ban.py)."""
WITH_REPORTS = ("Report",)
"""Run where there is much to report (tests/system/test_report.py)."""
WITH_METRICS = ("Metrics",)
"""Run by tests/system/test_metrics_service.py, and what is for node_exporter beside it."""


def read_blocks(section: str) -> list[list[str]]:
    """The commands of each shell block of a section, without their comments."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [[line.split(" #")[0].rstrip() for line in block.splitlines()] for block in blocks]


def run_all(container: Container, commands: list[str], folder: str = "/") -> None:
    for command in commands:
        container.run("sh", "-c", f"cd {folder} && {command}")


def test_each_shell_block_is_run() -> None:
    """`make run` by a test here, `make test` by whoever runs this."""
    others = README.split("\n## Install\n")[0] + README.split("\n## Flags\n")[1]
    assert re.findall(r"^```sh\n(.*?)\n```", others, re.MULTILINE) == ["make run", "make test"]
    assert README.count("```sh\n") == 2 + sum(
        len(read_blocks(section))
        for section in (*RUN, *IN_MACHINES, *WITH_FAIL2BAN, *WITH_METRICS, *WITH_REPORTS)
    )


def test_every_message_is_explained() -> None:
    """What a user can meet, as far as it is an event of its own."""
    table = README.split("\n## Troubleshooting\n")[1].split("\n## ")[0]
    told = [
        event.trace_unavailable("R", 0),
        event.records_lost(2, 0),
        event.trace_gap(0, 0),
        event.closings_untold(True, 0),
        event.trace_changed("R", 0),
        event.trace_failed("R", 0),
        event.connections_missed(2, 2, 0),
        event.connections_untold(2, 0),
        event.counters_failed("R", 0),
        event.poll_failed("R", 0),
        event.owners_failed("R", 0),
        event.rows_malformed([b"", b""], 0),
        event.keeping_failed("R", 0),
        event.metrics_failed("R", 0),
        event.baseline_unusable("R", 0),
        event.watch_failed("R", 0),
        event.scans_unfollowed(2, 0),
        event.resets_failed("R", 0),
    ]
    shapes = [re.escape(shape) for shape in re.findall(r"^\| `(.*?)`", table, re.MULTILINE)]
    shapes = [re.sub(r"(?<![a-z])[NM](?![a-z])", r"\\d+", shape.replace("…", ".*")) for shape in shapes]
    for message in (made.fields["MESSAGE"] for made in told):
        assert any(re.fullmatch(f"{shape}.*", message) for shape in shapes), message


@pytest.mark.parametrize("arguments", [[], ["ARGS=--output json"], ["ARGS=--interval 1"]])
def test_make_run(arguments: list[str]) -> None:
    """With nothing but Python: no virtual environment, no python-systemd."""
    python = {"PATH": os.environ["PATH"], "MAKEFLAGS": ""}
    process = subprocess.Popen(
        ["make", "run", *arguments], cwd=PROJECT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=python, start_new_session=True,
    )  # fmt: skip
    said = process.stdout if "json" in " ".join(arguments) else process.stderr
    assert said
    assert "watches the tables of TCP sockets" in said.readline()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=5)
    assert "Stopped" in out + err
    assert "Traceback" not in err


@pytest.mark.container
@pytest.mark.alone  # its last example mounts tracefs, and has this machine's trace from then on
def test_install_from_the_source_and_read() -> None:
    with Container("bookworm") as container, Namespace() as peer:
        copy_source(container.root / "src")
        container.boot()
        (commands,) = read_blocks("Install from the source")
        run_all(container, commands, "/src")
        check_all_reading(container, peer)
        run_all(container, read_blocks("Upgrade and remove")[1], "/src")
        assert not container.run(
            "find", "/usr", "-name", "*tcpwatchd*", "-not", "-path", "/usr/src/*"
        ).strip()


@pytest.mark.container
@pytest.mark.alone
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_install_the_package_and_read(suite: str) -> None:
    workshop = Workshop(suite)
    with Container(suite, more=REPORT) as container, Namespace() as peer:
        ((make_deb,), install) = read_blocks("Install")
        workshop.run("sh", "-c", f"cd /src && {make_deb}")
        if suite == "bookworm":
            workshop.run("sh", "-c", f"cd /src && make rpm ARGS='--nodeps --load={STUBS}'")
        (container.root / "root/package").mkdir()
        for package in (workshop.root / "src/dist").glob("*.deb"):
            shutil.copy(package, container.root / "root/package")
        workshop.remove()
        container.boot()
        run_all(container, install, "/root/package")
        check_all_reading(container, peer)
        check_configuring(container)
        ((purge,), _) = read_blocks("Upgrade and remove")
        container.run("sh", "-c", f"yes | {purge}")
        assert container.show("tcpwatchd", "LoadState") == "not-found"


def check_configuring(container: Container) -> None:
    """Settings, rules, buffers, a journal of its own, and back."""
    settings, rules, counted, buffers, own_journal, back = read_blocks("Configure")
    run_all(container, settings)
    wait_until(lambda: "every 5 s" in container.show("tcpwatchd", "StatusText"), 10, "the interval")
    run_all(container, rules)
    wait_until(lambda: len(entries(container, event.RELOADED)) == 2, 10, "the rules")
    container.run("systemctl", "reload", "tcpwatchd")
    run_all(container, counted)
    run_all(container, buffers)
    assert "TraceBuffer=4M" in container.run("tcpwatchd", "--show-config")
    *setting, reading = own_journal
    run_all(container, setting)
    before = read_starts(container)
    wait_until(
        lambda: "Started: version" in container.try_run("sh", "-c", reading).stdout, 10, "an entry there"
    )
    assert read_starts(container) == before
    (namespace,) = re.findall(r"--namespace=(\w+)", reading)
    for place in ("--namespace", namespace), ("--merge",):
        report = json.loads(container.run("tcpwatchd-report", *place, "--since", "-1min", "--json"))
        assert sum(report["hosts"].values()) > 0
        assert report["not_counted"]["faults"] == []
    run_all(container, back)
    wait_until(lambda: read_starts(container) != before, 10, "in the machine's journal again")


def read_starts(container: Container) -> str:
    container.run("journalctl", "--sync")
    return container.run("journalctl", "-t", "tcpwatchd", "-o", "cat", f"MESSAGE_ID={event.WATCH_STARTED}")


def check_all_reading(container: Container, peer: Namespace) -> None:
    assert container.show("tcpwatchd", "ActiveState") == "active"
    peer.join(PEER, container.leader, HOST)
    theirs = Traffic(peer.pid, "peer", PEER, HOST)
    ours = Traffic(container.leader, "each", PEER)
    truth = ours.truth()
    container.run("systemctl", "restart", "tcpwatchd")
    wait_until(lambda: len(entries(container, event.CONNECTION_OPENED)) >= len(truth), 20, "reports")
    check_reading(container, read_blocks("Read")[0])
    check_reading(container, MAN_EXAMPLES)
    ours.end()
    theirs.end()


def check_reading(container: Container, commands: list[str]) -> None:
    """None of those that read finds nothing, whether the service is up or down."""
    for verb in ("start", "stop"):
        container.run("systemctl", verb, "tcpwatchd")
        for command in commands:
            bounded = f"timeout 2 {command}" if command in ENDLESS else command
            result = container.try_run("sh", "-c", bounded)
            assert result.returncode == (124 if command in ENDLESS else 0), f"{command}: {result.stderr}"
            found = result.stdout.replace("-- No entries --", "").strip()
            assert found or command.startswith("systemctl"), f"{command} finds nothing"
    container.run("systemctl", "start", "tcpwatchd")


def test_make_without_a_target_lists_them() -> None:
    text = run("make", "-C", PROJECT, "help").stdout
    for target in ("run", "test", "lint", "bench", "install"):
        assert f"\n{target}\t" in f"\n{text}"
