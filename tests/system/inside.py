"""What runs inside the virtual machine: a scenario, whose result is written to /results.json."""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

OPENED = "55af53b17897428c8b2256cc60c8771b"
SHORT, FEW, MANY = 1000, 500, 3000
WATCHDOG = 5
"""Seconds."""
PATIENCE = 60
"""Seconds, on an emulated machine, for a poll to find a CPU that came online and for all to be written."""
INSTANCE = Path("/sys/kernel/tracing/instances/tcpwatchd")


def run(*command: str) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, stdin=subprocess.DEVNULL, text=True
    ).stdout


def start(*lines: str, flags: str = "") -> None:
    """With these lines in the unit's section [Service], and these flags."""
    drop_in = Path("/etc/systemd/system/tcpwatchd.service.d/test.conf")
    drop_in.parent.mkdir(parents=True)
    command = f"/usr/bin/tcpwatchd --output journal --interval 5 {flags}"
    drop_in.write_text("\n".join(["[Service]", "ExecStart=", f"ExecStart={command}", *lines, ""]))
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "tcpwatchd")


def open_short(cpu: int, short: int = SHORT) -> dict[str, Any]:
    """Short connections made on one CPU: how many there were, how many are reported, and by what."""
    traffic = ["python3", "/src/tests/traffic.py", "short", str(short)]
    return find_reported(*json.loads(run("taskset", "-c", str(cpu), *traffic)))


def find_reported(server: int, clients: list[int]) -> dict[str, Any]:
    """What is reported of connections to this port, when all are or no more can be expected."""
    short, found = len(clients), list[dict[str, str]]()
    deadline = time.monotonic() + PATIENCE
    while len(found) < short and time.monotonic() < deadline:
        time.sleep(2)
        run("journalctl", "--sync")
        matches = [f"MESSAGE_ID={OPENED}", f"DESTINATION_PORT={server}"]
        found = [json.loads(line) for line in run("journalctl", "-o", "json", *matches).splitlines()]
    ports = sorted(int(entry["SOURCE_PORT"]) for entry in found)
    sources = sorted({entry["TCPWATCHD_DETECTED_BY"] for entry in found})
    return {"opened": len(clients), "reported": len(found), "same": ports == sorted(clients), "by": sources}


def show(name: str) -> str:
    return run("systemctl", "show", "--property", name, "--value", "tcpwatchd").strip()


def measure_cpu() -> float:
    """Seconds of CPU that the daemon took so far."""
    fields = Path(f"/proc/{show('MainPID')}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def read_capabilities() -> list[str]:
    status = Path(f"/proc/{show('MainPID')}/status").read_text()
    return sorted({line.split()[1] for line in status.splitlines() if line.startswith("Cap")})


def late_cpu() -> dict[str, Any]:
    """Booted with one CPU of two; the other comes online while the daemon runs."""
    online = Path("/sys/devices/system/cpu/cpu1/online")
    start()
    results: dict[str, Any] = {
        "kernel": run("uname", "-r").strip(),
        "online at first": online.read_text().strip(),
    }
    results["on cpu 0"] = open_short(0)
    before = measure_cpu()
    time.sleep(3)
    results["idle share"] = (measure_cpu() - before) / 3
    online.write_text("1")
    results["on cpu 1"] = open_short(1)
    results["capabilities"] = read_capabilities()
    results["status"] = show("StatusText")
    run("systemctl", "stop", "tcpwatchd")
    deadline = time.monotonic() + PATIENCE
    while INSTANCE.exists() and time.monotonic() < deadline:
        time.sleep(1)
    results["instance left"] = INSTANCE.exists()
    return results


def packaged() -> dict[str, Any]:
    """The package on a machine, through a clock that is set and a CPU that goes and comes."""
    online = Path("/sys/devices/system/cpu/cpu1/online")
    run("sh", "-c", "apt-get install -y --no-install-recommends /root/*.deb")
    wait_active()
    results: dict[str, Any] = {"kernel": run("uname", "-r").strip()}
    units = ("tcpwatchd", "tcpwatchd-trace")
    results["units"] = [run("systemctl", "is-active", unit).strip() for unit in units]
    results["capabilities"] = read_capabilities()
    results["status"] = show("StatusText")
    steps: dict[str, Callable[[], object]] = {
        "at first": lambda: None,
        "clock forward": lambda: run("date", "--set", "+2 hours"),
        "clock back": lambda: run("date", "--set", "-3 hours"),
        "one cpu": lambda: online.write_text("0"),
        "both again": lambda: online.write_text("1"),
        "restart": lambda: run("systemctl", "restart", "tcpwatchd"),
    }
    for name, step in steps.items():
        step()
        results[name] = open_short(0 if name == "one cpu" else 1, FEW)
    results["probes"] = share_the_kernel()
    before = measure_cpu()
    time.sleep(3)
    results["idle share"] = (measure_cpu() - before) / 3
    results["warnings"] = run("journalctl", "-t", "tcpwatchd", "-p", "warning", "-o", "cat")
    run("apt-get", "purge", "-y", "tcpwatchd")
    results["left"] = [str(path) for path in (INSTANCE, Path("/run/tcpwatchd-trace")) if path.exists()]
    results["left"] += list_probes()
    return results


def list_probes() -> list[str]:
    """Names of event probes that there are on this machine."""
    lines = (INSTANCE.parents[1] / "dynamic_events").read_text().splitlines()
    return [line.split()[0].partition("/")[2] for line in lines]


def share_the_kernel() -> list[list[str]]:
    """The probes: of the service alone; with a second tcpwatchd, that is killed; a third, that ends."""
    found = [list_probes()]
    for end in (signal.SIGKILL, signal.SIGTERM):
        command = ["tcpwatchd", "--output", "json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as other:
            assert other.stdout
            while b"trace is in use" not in other.stdout.readline():
                pass
            found.append(list_probes())
            other.send_signal(end)
        found.append(list_probes())
    return found


def wait_active() -> None:
    deadline = time.monotonic() + PATIENCE
    while show("ActiveState") != "active" and time.monotonic() < deadline:
        time.sleep(0.5)


def lockdown() -> dict[str, Any]:
    """Tracing is forbidden."""
    start()
    time.sleep(2)
    text = run("journalctl", "-t", "tcpwatchd", "-o", "cat")
    return {
        "lockdown": Path("/sys/kernel/security/lockdown").read_text().strip(),
        "active": show("ActiveState"),
        "said": [line for line in text.splitlines() if line.startswith("Only polling")],
        "no ipv6": [line for line in text.splitlines() if line.endswith("no IPv6")],
        "tcp6": Path("/proc/net/tcp6").exists(),
        "failed units": run("systemctl", "list-units", "--failed", "--no-legend", "tcpwatchd*").strip(),
    }


def journald_stands_still() -> dict[str, Any]:
    """For longer than the watchdog's time under load: then it goes on, or the daemon is stopped before."""
    start(f"WatchdogSec={WATCHDOG}")
    results: dict[str, Any] = {"kernel": run("uname", "-r").strip()}
    for name in ("core/wmem_max", "unix/max_dgram_qlen"):
        results[name] = int(Path(f"/proc/sys/net/{name}").read_text())
    main = show("MainPID")
    ends = overload()
    results["same process"] = show("MainPID") == main
    results["status"] = show("StatusText")
    signal_journald(signal.SIGCONT)
    results["it goes on"] = find_reported(*ends)
    ends = overload()
    began = time.monotonic()
    run("systemctl", "stop", "tcpwatchd")
    results["seconds to stop"] = time.monotonic() - began
    results["result"] = show("Result")
    signal_journald(signal.SIGCONT)
    run("systemctl", "start", "tcpwatchd")
    results["it is started again"] = find_reported(*ends)
    results["restarts"] = show("NRestarts")
    results["a large entry"] = offer_large()
    return results


def overload() -> Any:
    """Stop journald, open many connections, and let the watchdog's time pass twice; both ends' ports."""
    signal_journald(signal.SIGSTOP)
    began = time.monotonic()
    ends = json.loads(run("python3", "/src/tests/traffic.py", "short", str(MANY)))
    time.sleep(max(2.0, began + 2 * WATCHDOG - time.monotonic()))
    return ends


def signal_journald(number: int) -> None:
    os.kill(int(run("systemctl", "show", "--property", "MainPID", "--value", "systemd-journald")), number)


def offer_large() -> dict[str, Any]:
    """To a journald that stands still, by a process without privilege."""
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    program = [*drop, "env", "PYTHONPATH=/usr/lib/tcpwatchd", "python3", "/src/tests/fill_journal.py"]
    signal_journald(signal.SIGSTOP)
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        ready = select.select([process.stdout], [], [], PATIENCE)[0]
        told = process.stdout.readline() if ready else ""
        signal_journald(signal.SIGCONT)
        process.communicate("\n", timeout=PATIENCE)
    taken, refused, slowest = json.loads(told or "[0, [], 1e9]")
    run("journalctl", "--sync")
    written = run("journalctl", "-o", "json", f"_PID={process.pid}").count("\n")
    return {"taken": taken, "refused": refused, "slowest": slowest, "written": written}


if __name__ == "__main__":
    module, scenario = sys.argv[1].rsplit(".", 1)
    made = getattr(importlib.import_module(module), scenario)
    Path("/results.json").write_text(json.dumps(made()))
