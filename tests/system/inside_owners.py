"""The scenario of owners: who connects and who listens, in units of many kinds, on a virtual machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.system.inside import OPENED, PATIENCE, run, start

if TYPE_CHECKING:
    from collections.abc import Sequence

OWNERS = {"alice": 1001, "bob": 1002, "carol": 1003}
LOST = "bf53f016e7e542cab169e64062825f2f"
OWNED = "/src/tests/system/owned.py"
TRUTH = Path("/truth")
SECONDS = 20
SERVERS = {
    7101: ("serve", "old.service", "alice"),
    7102: ("fork", "forking.service", "bob"),
    7103: ("serve", "one@a.service", "carol"),
}
"""Port: what serves there, as which unit and user. The first listens before the daemon starts."""
BOTH, ACTIVATED = 7104, 7105
"""Ports of two services that share one (SO_REUSEPORT), and of a socket unit."""

FETCHED = ("saddr_v6", "daddr_v6_low", "saddr", "uid", "cgroup", "netns")
COUNTED = ("error", "flags", "sent", "acknowledged", "written_until")
RECEIVED = ("received", "received_until", "read_until")
"""What probes fetch, but for what is the same as something beside it in connections over loopback."""


def owners() -> dict[str, Any]:
    """500 clients, and a kill and a restart of the daemon while they come."""
    for user, number in OWNERS.items():
        run("useradd", "--create-home", "--uid", str(number), user)
    TRUTH.touch()
    TRUTH.chmod(0o666)
    start_servers()
    start(flags="--message-owner")
    start_late_servers()
    clients = start_clients()
    time.sleep(SECONDS / 3)
    run("systemctl", "kill", "--signal=KILL", "tcpwatchd")
    time.sleep(SECONDS / 3)
    run("systemctl", "restart", "tcpwatchd")
    clients.wait(timeout=PATIENCE)
    open_to_remote()
    wrong = try_wrong_offsets()
    results = {**compare_owners(), "remote": find_remote(), "readme": run_readme(), "wrong offsets": wrong}
    return {**results, "rules": try_rules(), "report": read_report()}


def run_unit(unit: str, *command: str, user: str = "root", more: Sequence[str] = ()) -> None:
    settings = [f"--unit={unit}", f"--uid={user}", f"--setenv=UNIT={unit}", f"--setenv=TRUTH={TRUTH}", *more]
    run("systemd-run", "--quiet", "--collect", *settings, "/usr/bin/python3", OWNED, *command)


def start_servers() -> None:
    for port, (kind, unit, user) in SERVERS.items():
        if unit == "old.service":
            run_unit(unit, kind, str(port), user=user)
    time.sleep(2)


def start_late_servers() -> None:
    for port, (kind, unit, user) in SERVERS.items():
        if unit != "old.service":
            run_unit(unit, kind, str(port), user=user)
    # The port of two users is shared by nobody: the kernel allows it to one.
    run_unit("both-a.service", "serve", str(BOTH), user="bob")
    run_unit("both-b.service", "serve", str(BOTH), user="bob")
    units = Path("/run/systemd/system")
    (units / "activated.socket").write_text(f"[Socket]\nListenStream=[::]:{ACTIVATED}\n")
    environment = f"TRUTH={TRUTH} UNIT=activated.service"
    (units / "activated.service").write_text(format_service(environment, "activated"))
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "activated.socket")
    time.sleep(3)


def format_service(environment: str, *arguments: str) -> str:
    command = " ".join(["/usr/bin/python3", OWNED, *arguments])
    return f"[Service]\nEnvironment={environment}\nExecStart={command}\n"


def start_clients() -> subprocess.Popen[bytes]:
    """In a service, an instance of a template, a user's own unit, a scope and a container."""
    ports = [str(port) for port in (*SERVERS, BOTH, ACTIVATED)]
    many = ["clients", "100", str(SECONDS), *ports]
    run_unit("web.service", *many, user="alice")
    run_unit("job@x\\x2dy.service", *many, user="bob")
    run("systemctl", "start", "user@1001.service")
    folder = Path("/home/alice/.config/systemd/user")
    folder.mkdir(parents=True)
    expected = f"TRUTH={TRUTH} UNIT=user@1001.service USER_UNIT=mine.service"
    (folder / "mine.service").write_text(format_service(expected, *many))
    alice = [
        "setpriv",
        "--reuid=alice",
        "--regid=alice",
        "--clear-groups",
        "env",
        "XDG_RUNTIME_DIR=/run/user/1001",
    ]
    run(*alice, "systemctl", "--user", "start", "mine.service")
    box = "systemd-nspawn --quiet --register=no --keep-unit --machine=box --directory=/ --volatile=yes"
    known = {"TRUTH": TRUTH, "BOX": "box", "UNIT": "systemd-nspawn@box.service"}
    box += f" --bind=/src --bind={TRUTH} " + " ".join(f"--setenv={name}={known[name]}" for name in known)
    drop_in = Path("/run/systemd/system/systemd-nspawn@box.service.d/test.conf")
    drop_in.parent.mkdir()
    program = ["/usr/bin/python3", OWNED, *many]
    drop_in.write_text(f"[Service]\nExecStart=\nExecStart={box} {' '.join(program)}\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "--no-block", "systemd-nspawn@box.service")
    scope = ["systemd-run", "--quiet", "--scope", "--unit=shell.scope", "--uid=carol"]
    environment = {**os.environ, "TRUTH": str(TRUTH), "UNIT": "shell.scope"}
    return subprocess.Popen([*scope, *program], env=environment)


def open_to_remote() -> None:
    """To and from a host that is no socket of this kernel; from a user's unit to it, and to sshd's port."""
    run_script("backup.service", "exec python3 /src/tests/remote.py 20 < <(sleep infinity) > /remote.json")
    give_up_at = time.monotonic() + PATIENCE
    while not Path("/remote.json").exists() or not Path("/remote.json").read_text():
        if time.monotonic() > give_up_at:
            raise TimeoutError(run("journalctl", "-u", "backup"))
        time.sleep(0.5)
    run_script("ssh.service", "exec python3 /src/tests/system/owned.py serve 22")
    time.sleep(3)
    run_script(
        "blog.service", "exec 3<>/dev/tcp/10.80.0.2/80; exec 4<>/dev/tcp/127.0.0.1/22", user="www-data"
    )
    time.sleep(3)


def run_script(unit: str, script: str, user: str = "root") -> None:
    settings = [f"--unit={unit}", f"--uid={user}", "--setenv=TRUTH=/dev/null"]
    run("systemd-run", "--quiet", "--collect", *settings, "/bin/bash", "-c", script)


RULES = """[Rules]
Ignore=unit quiet.service and port 80
Warning=user www-data and process ba*
Ignore=not container * and process python3
"""


def try_rules() -> dict[str, Any]:
    """What becomes of connections to the remote from three units, by rules that ask for owners."""
    folder = Path("/etc/tcpwatchd/tcpwatchd.conf.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.conf").write_text(RULES)
    run("systemctl", "reload", "tcpwatchd")
    connect = "exec 3<>/dev/tcp/10.80.0.2/81"
    run_script("quiet.service", connect.replace("81", "80"))
    run_script("plain.service", connect)
    run_script("loud.service", connect, user="www-data")
    time.sleep(5)
    run("systemctl", "stop", "tcpwatchd")
    run("journalctl", "--sync")
    text = run("journalctl", "-o", "json", f"MESSAGE_ID={OPENED}", "DESTINATION_IP=10.80.0.2")
    entries = [json.loads(line) for line in text.splitlines()]
    units = "quiet.service", "plain.service", "loud.service"
    told = [(entry.get("PROCESS_SYSTEMD_UNIT"), entry["PRIORITY"]) for entry in entries]
    counted = run("journalctl", "-t", "tcpwatchd", "-o", "cat", "--grep", "ignored \\(")
    return {"told": sorted(one for one in told if one[0] in units), "counted": counted}


def read_report() -> dict[str, Any]:
    """How many connections of each unit the report counts, and how many entries there are of it."""
    report = json.loads(run("tcpwatchd-report", "--boot", "--json", "--top=1000"))
    rows = [row for row in report["services"]["top"] if "process " not in (row["name"] or "process ")]
    counted = {row["name"]: row["connections"] for row in rows}
    entries = Counter[str]()
    for entry in map(json.loads, run("journalctl", "-b", "-o", "json", f"MESSAGE_ID={OPENED}").splitlines()):
        ends = set()
        for prefix in ("PROCESS_", "DESTINATION_"):
            units = [entry.get(f"{prefix}SYSTEMD_{kind}") for kind in ("UNIT", "USER_UNIT")]
            ends |= {"/".join(filter(None, units))}
        entries.update(ends - {""})
    to_remote = json.loads(run("tcpwatchd-report", "-b", "--json", "unit", "blog.service", "and", "egress"))
    return {"counted": counted, "entries": entries, "filtered": to_remote["connections"]["all"]}


def find_remote() -> dict[str, Any]:
    """How many connections with the remote are reported, and what their owners are."""
    own = run("systemctl", "show", "--property=MainPID", "--value", "backup.service").strip()
    owners = Counter[str]()
    for direction, end in (("ingress", "SOURCE_IP"), ("egress", "DESTINATION_IP")):
        text = run("journalctl", "-o", "json", f"NETWORK_DIRECTION={direction}", f"{end}=10.80.0.2")
        for entry in map(json.loads, text.splitlines()):
            same = entry.get("PROCESS_PID") == own
            words = [
                direction,
                entry.get("PROCESS_SYSTEMD_UNIT"),
                entry.get("PROCESS_USER_NAME"),
                entry.get("PROCESS_NAME"),
            ]
            owners[f"{' '.join(map(str, words))} {same}"] += 1
    return owners


def run_readme() -> dict[str, str]:
    """What the commands of its section on owners find."""
    text = Path("/src/README.md").read_text().split("\n## Who\n")[1].split("\n## ")[0]
    commands = [line.split(" #")[0].strip() for line in text.split("```sh\n")[1].split("```")[0].splitlines()]
    return {command: run("sh", "-c", command) for command in commands}


def try_wrong_offsets() -> dict[str, str]:
    """What the proof says of probes that fetch from elsewhere than BTF says, and of the right one."""
    from tcpwatchd.kernel import probe, proof

    name, *right = probe.describe_probe("wrong")
    said = {}
    for number, field in enumerate(["", *FETCHED, *COUNTED, *RECEIVED]):
        pattern = rf"(?<= {field or 'none'}=\+)(\d+)"
        wrong = [re.sub(pattern, lambda found: str(int(found[1]) + 4), definition) for definition in right]
        assert (wrong == right) == (not field)
        for suffix, definition in zip(("", "_close"), wrong):
            probe.define("/sys/kernel/tracing", f"{name}{number}{suffix}", definition)
        try:
            proof.prove("/sys/kernel/tracing", f"{name}{number}", closing=True)
            said[field] = "proved"
        except probe.ProbeError as error:
            said[field] = str(error)
        probe.remove_probe("/sys/kernel/tracing", f"{name}{number}")
    return said


def compare_owners() -> dict[str, Any]:
    """What was reported of each connection that was written down."""
    time.sleep(10)
    run("journalctl", "--sync")
    text = run("journalctl", "-o", "json", f"MESSAGE_ID={OPENED}")
    reported: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for entry in map(json.loads, text.splitlines()):
        ends = entry["SOURCE_IP"], entry["SOURCE_PORT"], entry["DESTINATION_PORT"]
        reported.setdefault(ends, []).append(entry)
    results: dict[str, Any] = {"kernel": run("uname", "-r").strip()}
    results |= dict.fromkeys(("clients", "servers", "processes", "threads", "told again"), 0)
    wrong: list[Any] = []
    absent = set[str]()
    truths = list(map(json.loads, TRUTH.read_text().splitlines()))
    for truth in truths:
        is_client = "client" in truth
        results["clients" if is_client else "servers"] += 1
        entries = reported.get((*truth["client" if is_client else "accepted"], str(truth["server"])), [])
        # The same ports can have been used twice.
        wanted = sum(other.get("client") == truth["client"] for other in truths) if is_client else 0
        results["told again"] += max(0, len(entries) - wanted) if is_client else 0
        entries = sorted(entries, key=lambda entry: len(find_faults(truth, entry)))[:1]
        absent |= set() if entries else {str(truth)}
        for entry in entries:
            found = find_faults(truth, entry)
            wrong += [(fault, truth, entry) for fault in found if is_told(fault, entry)]
            absent |= {str(truth) for fault in found if not is_told(fault, entry)}
        if entries and is_client:
            results["processes"] += "PROCESS_PID" in entries[0]
            results["threads"] += "PROCESS_THREAD_ID" in entries[0]
    results["units"] = Counter(truth["USER_UNIT"] or truth["UNIT"] for truth in truths)
    results["wrong"] = wrong[:20]
    results["not known"] = len(absent)
    lost = run("journalctl", "-o", "json", f"MESSAGE_ID={LOST}").splitlines()
    results["lost"] = sum(int(json.loads(line)["TCPWATCHD_RECORDS_LOST"]) for line in lost)
    results["warnings"] = run("journalctl", "-t", "tcpwatchd", "-p", "warning", "-o", "cat")
    return results


def find_faults(truth: dict[str, Any], entry: dict[str, Any]) -> list[str]:
    return list_faults(truth, entry) if "client" in truth else list_faults_of_server(truth, entry)


def is_told(name: str, entry: dict[str, Any]) -> bool:
    return name in entry or (name == "PROCESS_PID" and "PROCESS_THREAD_ID" in entry)


def list_faults(truth: dict[str, Any], entry: dict[str, Any]) -> list[str]:
    """Fields of who connects that are absent or wrong."""
    expected = {
        "PROCESS_USER_ID": str(truth["user"]),
        "PROCESS_SYSTEMD_UNIT": truth["UNIT"],
        "PROCESS_SYSTEMD_USER_UNIT": truth["USER_UNIT"],
        "CONTAINER_ID": truth["BOX"],
        "PROCESS_NAME": truth["name"].replace("\n", "\\n"),
        "NETWORK_DIRECTION": "internal",
    }
    faults = [name for name, value in expected.items() if entry.get(name) != value]
    if "process" in truth:
        told = entry.get("PROCESS_PID"), entry.get("PROCESS_THREAD_ID")
        if told not in ((str(truth["process"]), None), (None, str(truth["thread"]))):
            faults.append("PROCESS_PID")
    return faults


def list_faults_of_server(truth: dict[str, Any], entry: dict[str, Any]) -> list[str]:
    """Of who listens. The socket of a socket unit is systemd's, whoever accepts at it."""
    activated = truth["UNIT"] == "activated.service"
    user, unit = (
        ("0", entry.get("DESTINATION_SYSTEMD_UNIT")) if activated else (str(truth["user"]), truth["UNIT"])
    )
    expected = {"DESTINATION_USER_ID": user, "DESTINATION_SYSTEMD_UNIT": unit}
    return [name for name, value in expected.items() if entry.get(name) != value]
