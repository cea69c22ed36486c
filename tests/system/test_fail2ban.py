"""The examples for fail2ban as they stand, with Debian's fail2ban and nftables: who scans is blocked."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.output import event
from tests.holder import Traffic
from tests.namespace import Namespace, enter_network, run, wait_until
from tests.system.container import FAIL2BAN, PROJECT, Container
from tests.system.service import entries, write_settings
from tests.test_readme import read_blocks, run_all

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST, CHECKER, SCANNER, FRIEND, STRANGER, OTHER = (f"10.79.5.{number}" for number in range(1, 7))
HOST6, FAR6 = "fd00:79:5::1", "fd00:79:6::"
NETWORK6 = f"{FAR6}/64"
SCANNERS6 = [f"{FAR6}{number}" for number in range(2, 6)]
"""In a network that the host is not in."""
OPEN = 80
INTERVAL, SLOW = 10, 30
"""Seconds from poll to poll, and for all else on a machine that is slow."""
WINDOW = 5

pytestmark = [pytest.mark.container, pytest.mark.trace, pytest.mark.alone]


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with Container("bookworm", traced=True, more=FAIL2BAN) as booted:
        booted.install()
        write_settings(booted, "scan", f"[Scan]\nWindow={WINDOW}s\n")
        booted.boot()
        booted.run("systemctl", "start", "tcpwatchd")
        _, _, (*commands, status) = read_blocks("Port scans")
        run_all(booted, commands)
        wait_until(lambda: booted.try_run("sh", "-c", status).returncode == 0, 20, status)
        yield booted
        booted.run("systemctl", "stop", "tcpwatchd")


@pytest.fixture(scope="module")
def network(container: Container) -> Iterator[Namespace]:
    """Where all come from that connect to the container's three open ports."""
    with Namespace() as made:
        made.join(SCANNER, container.leader, HOST)
        for address in (CHECKER, FRIEND, STRANGER, OTHER):
            run(*made.prefix, "ip", "address", "add", f"{address}/24", "dev", "ve0")
        for address in SCANNERS6:
            run(*made.prefix, "ip", "address", "add", f"{address}/64", "dev", "ve0", "nodad")
        container.run("ip", "address", "add", f"{HOST6}/64", "dev", "ve1", "nodad")
        container.run("ip", "route", "add", NETWORK6, "dev", "ve1")
        run(*made.prefix, "ip", "route", "add", f"{HOST6}/128", "dev", "ve0")
        serve = [sys.executable, "-m", "tests.port_scans", "serve"]
        server = subprocess.Popen([*enter_network(container.leader), *serve], cwd=PROJECT)
        wait_until(lambda: can_connect(made, CHECKER), 20, "the ports are open")
        yield made
        server.terminate()
        server.wait()


@pytest.fixture(autouse=True)
def _checks(network: Namespace) -> Iterator[None]:
    """A health check all the time, which is never blocked."""
    check = Traffic(network.pid, "check", CHECKER, HOST, str(OPEN))
    assert check.truth()
    yield
    could = check.end().split()
    assert set(could) == {"true"}


def can_connect(network: Namespace, source: str) -> bool:
    there = HOST6 if ":" in source else HOST
    command = [*network.prefix, "ncat", "-z", "-w", "3", "-s", source, there, str(OPEN)]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


def scan(network: Namespace, source: str, ports: str = "1-100", how: str = "-sS") -> None:
    """A half-open one by default, which completes no handshake; only of those can nmap choose the source."""
    there = ["-6", HOST6] if ":" in source else [HOST]
    chosen = ["-S", source, "-e", "ve0"] if how == "-sS" else []
    run(*network.prefix, "nmap", "-n", "-Pn", "--disable-arp-ping", how, *chosen, "-p", ports, *there)


def list_told(container: Container, source: str) -> list[str]:
    return [entry["MESSAGE"] for entry in entries(container, event.PORT_SCAN, f"SOURCE_IP={source}")]


def list_banned(container: Container) -> set[str]:
    status = container.try_run("fail2ban-client", "status", "tcpwatchd").stdout
    return set(status.partition("Banned IP list:")[2].split())


def wait_until_blocked(container: Container, address: str) -> None:
    def is_blocked() -> bool:
        return address in list_banned(container) and address in read_ruleset(container)

    wait_until(is_blocked, INTERVAL + SLOW, f"{address} blocked")


def read_ruleset(container: Container) -> list[str]:
    return container.run("nft", "list", "ruleset").replace(",", " ").split()


def unban(container: Container, address: str) -> None:
    container.run("fail2ban-client", "set", "tcpwatchd", "unbanip", address)
    assert address not in list_banned(container)
    assert address not in read_ruleset(container)


def test_who_scans_is_blocked_and_again_after_it_was_freed(container: Container, network: Namespace) -> None:
    forge_entry(container, OTHER)
    scan(network, FRIEND)
    find_blocked(container, network)
    # Who is blocked does not go on. When the window is over, so is the scan.
    time.sleep(2 * WINDOW)
    unban(container, SCANNER)
    find_blocked(container, network)
    assert len(list_told(container, SCANNER)) == 2
    unban(container, SCANNER)
    assert len(list_told(container, FRIEND)) == 1
    assert len(list_told(container, OTHER)) == 1
    assert list_banned(container).isdisjoint({CHECKER, FRIEND, OTHER})
    assert can_connect(network, FRIEND)


def find_blocked(container: Container, network: Namespace) -> None:
    assert can_connect(network, SCANNER)
    began = time.monotonic()
    scan(network, SCANNER)
    wait_until_blocked(container, SCANNER)
    print(f"blocked {time.monotonic() - began:.1f} s after nmap began")
    assert not can_connect(network, SCANNER)


def forge_entry(container: Container, address: str) -> None:
    """As any user can."""
    fields = {
        "MESSAGE": f"Port scan: {address} tried 97 ports of this host",
        "MESSAGE_ID": event.PORT_SCAN,
        "SYSLOG_IDENTIFIER": "tcpwatchd",
        "SOURCE_IP": address,
    }
    lines = [f"{name}={value}" for name, value in fields.items()]
    drop = "setpriv --reuid 65534 --regid 65534 --clear-groups"
    container.run("sh", "-c", f'printf "%s\\n" "$@" | {drop} logger --journald', "sh", *lines)


def test_the_commands_of_the_readme(container: Container) -> None:
    """The last of them were run before."""
    reading, allowing, _ = read_blocks("Port scans")
    for command in reading:
        assert "Port scan: " in container.run("sh", "-c", command)
    folder = container.root / "etc/tcpwatchd/tcpwatchd.conf.d"
    text = (folder / "scan.conf").read_text()
    run_all(container, allowing)
    assert "\nAllow=192.0.2.0/24 2001:db8::/32\n" in container.run("tcpwatchd", "--show-config")
    (folder / "scan.conf").write_text(text)
    container.run("systemctl", "reload", "tcpwatchd")


def test_a_network_is_blocked_beside_an_address_of_it(container: Container, network: Namespace) -> None:
    first, second, third, fourth = SCANNERS6
    scan(network, first, "1-20")
    wait_until_blocked(container, first)
    assert not can_connect(network, first)
    assert can_connect(network, fourth)
    scan(network, second, "21-22")
    scan(network, third, "23-24")
    wait_until_blocked(container, NETWORK6)
    assert not can_connect(network, fourth)
    unban(container, first)
    assert not can_connect(network, first)
    container.run("systemctl", "restart", "fail2ban")
    wait_until_blocked(container, NETWORK6)
    assert not can_connect(network, fourth)
    unban(container, NETWORK6)
    assert can_connect(network, first)
    assert can_connect(network, fourth)


def test_only_who_completed_handshakes_is_blocked_on_demand(container: Container, network: Namespace) -> None:
    """By the line that is there for it."""
    path = container.root / "etc/fail2ban/filter.d/tcpwatchd.conf"
    text = path.read_text().replace("\njournalmatch", "\n# journalmatch")
    path.write_text(text.replace("\n#journalmatch", "\njournalmatch"))
    container.run("fail2ban-client", "reload")
    scan(network, STRANGER)
    wait_until(lambda: list_told(container, STRANGER), INTERVAL + SLOW, "told")
    scan(network, SCANNER, "7001-7100", how="-sT")
    wait_until_blocked(container, SCANNER)
    assert STRANGER not in list_banned(container)
    container.run("systemctl", "stop", "fail2ban")
    assert read_ruleset(container) == []
    assert can_connect(network, SCANNER)
