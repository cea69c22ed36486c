"""Every command of the README, as written, in its order."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.holder import Traffic
from tests.namespace import Namespace, run, wait_until
from tests.system.container import Container, copy_source
from tests.system.packages import STUBS, Workshop

PROJECT = Path(__file__).parents[1]
HOST, PEER = "10.77.0.1", "10.77.0.2"
EMPTY = {"journalctl -t tcpwatchd -p warning"}
ENDLESS = {"make run", "journalctl -t tcpwatchd -f"}
THIS = "make test"
SECTIONS = ("Try it", "Install", "Build the packages", "Install from the source", "Read", "What it costs")


def read_commands(section: str) -> list[str]:
    """Lines of the shell blocks of a section, without their comments."""
    text = (PROJECT / "README.md").read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line.split(" #")[0].rstrip() for block in blocks for line in block.splitlines()]


def test_each_shell_block_is_in_a_section_that_is_run() -> None:
    text = (PROJECT / "README.md").read_text()
    run_here = sum(text.split(f"\n## {name}\n")[1].split("\n## ")[0].count("```sh\n") for name in SECTIONS)
    assert text.count("```sh\n") == run_here
    assert set(read_commands("Try it")) == {"make run", THIS}


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
def test_install_from_the_source_and_read() -> None:
    with Container("bookworm") as container, Namespace() as peer:
        copy_source(container.root / "src")
        container.boot()
        for command in read_commands("Install from the source"):
            container.run("sh", "-c", f"cd /src && {command}")
        check_all_reading(container, peer)


@pytest.mark.container
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_install_the_package_and_read(suite: str) -> None:
    workshop = Workshop(suite)
    with Container(suite) as container, Namespace() as peer:
        make_deb, make_rpm = read_commands("Build the packages")
        workshop.run("sh", "-c", f"cd /src && {make_deb}")
        if suite == "bookworm":
            workshop.run("sh", "-c", f"cd /src && {make_rpm} ARGS='--nodeps --load={STUBS}'")
        (container.root / "root/package").mkdir()
        for package in (workshop.root / "src/dist").glob("*.deb"):
            shutil.copy(package, container.root / "root/package")
        workshop.remove()
        container.boot()
        for command in read_commands("Install"):
            container.run("sh", "-c", f"cd /root/package && {command}")
        check_all_reading(container, peer)
        check_own_journal(container)


def check_own_journal(container: Container) -> None:
    """The last commands of a section: the entries are there, and no longer in the machine's journal."""
    before = container.run("sh", "-c", "journalctl --sync; journalctl -t tcpwatchd | wc -l")
    *setting, reading = read_commands("What it costs")
    for command in setting:
        container.run("sh", "-c", command)
    wait_until(
        lambda: "Started: version" in container.try_run("sh", "-c", reading).stdout, 10, "an entry there"
    )
    after = container.run("sh", "-c", "journalctl --sync; journalctl -t tcpwatchd | wc -l")
    assert int(after) <= int(before) + 1, "at most the entry at the stop"


def check_all_reading(container: Container, peer: Namespace) -> None:
    assert container.show("tcpwatchd", "ActiveState") == "active"
    peer.join(PEER, container.leader, HOST)
    theirs = Traffic(peer.pid, "peer", PEER, HOST)
    ours = Traffic(container.leader, "each", PEER)
    truth = ours.truth()
    container.run("systemctl", "restart", "tcpwatchd")
    wait_until(
        lambda: f"; {len(truth)} connections" in container.show("tcpwatchd", "StatusText"), 20, "reports"
    )
    container.run("journalctl", "--sync")
    for command in read_commands("Read"):
        check_reading(container, command)
    ours.end()
    theirs.end()


def check_reading(container: Container, command: str) -> None:
    bounded = f"timeout 2 {command}" if command in ENDLESS else command
    result = container.try_run("sh", "-c", bounded)
    assert result.returncode == (124 if command in ENDLESS else 0), f"{command}: {result.stderr}"
    lines = [line for line in result.stdout.splitlines() if not line.startswith("-- ")]
    assert bool(lines) == (command not in EMPTY), f"{command}: {result.stdout}"


def test_make_without_a_target_lists_them() -> None:
    text = run("make", "-C", PROJECT, "help").stdout
    for target in ("run", "test", "lint", "bench", "install"):
        assert f"\n{target}\t" in f"\n{text}"
