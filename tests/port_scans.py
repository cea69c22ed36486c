"""Scans that nmap makes: of every kind, by IPv4 and IPv6, without a firewall and behind nftables.

    port_scans.py

As root. Each scan has a source of its own, in a network namespace of its own. Hosts are network namespaces
too, with 100 ports of which 3 are open, and 100 of which 5 are. Prints as JSON where each scan came from, and
what nmap said.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.namespace import Namespace, run

FIREWALLS = {"none": "", "drop": "drop", "reject": "reject with tcp reset"}
THREE, FIVE = (22, 53, 80), (7001, 7003, 7005, 7007, 7009)
KINDS = {
    "-sT": ("-sT", "1-100"),
    "-sT, 5 open": ("-sT", "7001-7100"),
    "-sS": ("-sS", "1-100"),
    "-sF": ("-sF", "1-100"),
    "-sV": ("-sV", "1-100"),
    "-sS -T2": ("-sS -T2 --max-retries 0", "1-100"),
    "-sS -T4": ("-sS -T4", "1-100"),
}
BANNER = b"SSH-2.0-OpenSSH_9.2\r\n"
TIMEOUT = 240
AT_ONCE = 16


def expect(scan: dict[str, str], resets: bool) -> tuple[list[int], list[int]]:
    """Which open and closed ports are told of a scan, by default; `resets`: whether closed ones can be."""
    first = 7001 if "open" in scan["kind"] else 1
    there = FIVE if "open" in scan["kind"] else THREE
    opened = list(there) if scan["kind"].startswith(("-sT", "-sV")) else []
    closed = [port for port in range(first, first + 100) if port not in there]
    if not resets or scan["firewall"] != "none":
        closed = []
    return (opened, closed) if len(opened) + len(closed) > 3 else ([], [])


def find_told(scan: dict[str, str], entries: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Which open and closed ports the entries tell of a scan."""
    ports = "TCPWATCHD_OPEN_PORTS", "TCPWATCHD_CLOSED_PORTS"
    told: tuple[set[int], set[int]] = set(), set()
    for entry in entries:
        if entry["SOURCE_IP"] == scan["source"]:
            for name, found in zip(ports, told):
                found.update(parse_ports(entry.get(name, "")))
    return sorted(told[0]), sorted(told[1])


def parse_ports(text: str) -> list[int]:
    ranges = [part.split("-") for part in text.split(",") if part]
    return [port for ends in ranges for port in range(int(ends[0]), int(ends[-1]) + 1)]


def serve() -> None:
    """Greet whoever comes to an open port, of both families, and wait until it leaves."""
    waiting = selectors.DefaultSelector()
    for port in THREE + FIVE:
        server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        waiting.register(server, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            there: Any = key.fileobj
            try:
                if there.getsockname()[1] and not key.data:
                    accepted = there.accept()[0]
                    accepted.send(BANNER)
                    waiting.register(accepted, selectors.EVENT_READ, "accepted")
                elif not there.recv(4096):
                    raise ConnectionError
            except OSError:
                if key.data:
                    waiting.unregister(there)
                    there.close()


def protect(prefix: list[str], verdict: str) -> None:
    """Have the firewall let nothing through but the open ports."""
    ports = ", ".join(str(port) for port in THREE + FIVE)
    rules = f"""table inet filter {{
    chain input {{
        type filter hook input priority 0; policy accept;
        tcp flags & (syn | ack) == syn tcp dport {{ {ports} }} accept
        ct state established accept
        meta l4proto tcp {verdict}
    }}
}}"""
    subprocess.run([*prefix, "nft", "-f", "-"], check=True, input=rules.encode())


def join(number: int, host: Namespace, scanner: Namespace) -> dict[str, tuple[str, str]]:
    """Connect a scanner with the host; of each family its address and the host's."""
    four, six = f"10.71.{number}.", f"fd71:{number}::"
    pairs = {"IPv4": (f"{four}2", f"{four}1"), "IPv6": (f"{six}2", f"{six}1")}
    link = ["out", "type", "veth", "peer", "name", f"host{number}", "netns", str(host.pid)]
    run(*scanner.prefix, "ip", "link", "add", *link)
    for which, (prefix, name) in enumerate(((scanner.prefix, "out"), (host.prefix, f"host{number}"))):
        run(*prefix, "ip", "address", "add", f"{pairs['IPv4'][which]}/24", "dev", name)
        run(*prefix, "ip", "address", "add", f"{pairs['IPv6'][which]}/64", "dev", name, "nodad")
        run(*prefix, "ip", "link", "set", name, "up")
    return pairs


def set_up(stack: contextlib.ExitStack) -> list[tuple[dict[str, str], list[str]]]:
    """Hosts and scanners; what there is to know of each scan, and its command. The slow ones come first."""
    scans, number = [], 0
    for firewall, verdict in FIREWALLS.items():
        host = stack.enter_context(Namespace())
        server = subprocess.Popen([*host.prefix, sys.executable, "-m", "tests.port_scans", "serve"])
        stack.callback(server.wait)
        stack.callback(server.terminate)
        if verdict:
            protect(host.prefix, verdict)
        for kind, (flags, ports) in KINDS.items():
            scanner = stack.enter_context(Namespace())
            number += 1
            for family, (source, target) in join(number, host, scanner).items():
                nmap = ["nmap", "-n", "-Pn", "--disable-arp-ping", *flags.split(), "-p", ports, target]
                nmap += ["-6"] * (family == "IPv6")
                scan = {"firewall": firewall, "kind": kind, "family": family, "source": source}
                scans.append((scan, [*scanner.prefix, *nmap]))
    return sorted(scans, key=lambda pair: pair[0]["kind"] != "-sS -T2")


def scan(command: list[str]) -> str:
    return subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT
    ).stdout


def main() -> None:
    with contextlib.ExitStack() as stack:
        scans = set_up(stack)
        time.sleep(1)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            outputs = pool.map(scan, [command for _, command in scans])
            told = [{**known, "output": output} for (known, _), output in zip(scans, outputs)]
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
