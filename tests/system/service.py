"""The service in a container: its settings and its entries."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tcpwatchd.output import event
from tests.namespace import TRACING, wait_until

if TYPE_CHECKING:
    from tests.system.container import Container

INSTANCE, RESETS = TRACING / "instances/tcpwatchd", TRACING / "instances/tcpwatchd-resets"
"""What the service has of the trace; the second where the kernel tells of closed ports."""


def list_instances() -> dict[str, int]:
    """Those that stand; each one that is made has a number of its own."""
    return {path.name: path.stat().st_ino for path in (INSTANCE, RESETS) if path.exists()}


def wait_until_gone() -> None:
    wait_until(lambda: not list_instances(), 10, "no instance")


def configure(container: Container, lines: str) -> None:
    drop_in = container.root / "etc/systemd/system/tcpwatchd.service.d/test.conf"
    drop_in.parent.mkdir(exist_ok=True, parents=True)
    drop_in.write_text(f"[Service]\n{lines}\n")
    container.run("systemctl", "daemon-reload")


def write_settings(container: Container, name: str, text: str) -> None:
    """As a drop-in of this name; an empty text is none."""
    drop_in = container.root / f"etc/tcpwatchd/tcpwatchd.conf.d/{name}.conf"
    drop_in.parent.mkdir(exist_ok=True, parents=True)
    if text:
        drop_in.write_text(text)
    else:
        drop_in.unlink(missing_ok=True)


def entries(container: Container, message_id: str, *matches: str) -> list[dict[str, Any]]:
    """Counted by MESSAGE_ID: entries whose sender has gone before journald reads them lose their unit."""
    container.run("journalctl", "--sync")
    text = container.run("journalctl", "--output=json", f"MESSAGE_ID={message_id}", *matches)
    return [json.loads(line) for line in text.splitlines()]


def count_reported(container: Container) -> int:
    return int(container.show("tcpwatchd", "StatusText").split("; ")[1].split()[0])


def count_lost(container: Container) -> int:
    """Records of the kernel's trace that the service said were lost."""
    return sum(int(e["TCPWATCHD_RECORDS_LOST"]) for e in entries(container, event.RECORDS_LOST))
