"""The one table of settings: what the file, the command line, the manual and the shipped file are made of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from tcpwatchd.config.values import (
    one_of,
    parse_bool,
    parse_buffer,
    parse_fold,
    parse_instance,
    parse_interval,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class Setting(NamedTuple):
    """`key` is its name in the file; the flag and the attribute of the settings follow from that."""

    section: str
    key: str
    default: str | None
    """As in the file; None if it is not set."""
    form: str
    """What its value looks like."""
    parse: Callable[[str], Any]
    """Raises ValueError with what is wrong."""
    help: str
    """For --help, in one sentence without a full stop."""
    details: str = ""
    """For the manual and the shipped file beside that, in sentences."""
    needs_restart: bool = False
    """Whether a reload does not change it."""

    @property
    def flag(self) -> str:
        return "--" + re.sub("(?<=.)(?=[A-Z])", "-", self.key).lower()

    @property
    def name(self) -> str:
        return self.flag[2:].replace("-", "_")

    @property
    def is_switch(self) -> bool:
        return self.parse is parse_bool


SETTINGS = (
    Setting(
        "Watch",
        "Interval",
        "10s",
        "SPAN",
        parse_interval,
        "time between polls, 100ms to 1d",
        "A plain number is seconds.",
    ),
    Setting(
        "Watch",
        "Report",
        "opened",
        "opened|closed|both",
        one_of("opened", "closed", "both"),
        "when a connection is reported: as it opens, as it closes, with what is known then, or both times",
        needs_restart=True,
    ),
    Setting(
        "Watch",
        "CommandLines",
        "no",
        "yes|no",
        parse_bool,
        "report the command line of who connects too, which may hold secrets",
    ),
    Setting(
        "Watch",
        "MessageOwner",
        "no",
        "yes|no",
        parse_bool,
        "end each message with who owns the connection, for people who read along",
    ),
    Setting(
        "Watch",
        "Output",
        "auto",
        "auto|journal|text|json",
        one_of("auto", "journal", "text", "json"),
        "where events go; auto is the journal when stdout or stderr is connected to it, else text",
        "The service's unit says journal, by the flag.",
        needs_restart=True,
    ),
    Setting(
        "Trace",
        "Trace",
        "auto",
        "auto|no|require",
        one_of("auto", "no", "require"),
        "whether to use the kernel's trace; auto, when it is to be had",
        "With require, it ends with status 2 when it is not.",
        needs_restart=True,
    ),
    Setting(
        "Trace",
        "TraceInstance",
        None,
        "NAME",
        parse_instance,
        "the instance of tracefs to use; made when it is not there, and removed at the end",
        "If it is not set, it is the one of the service, where that is bound to /run/tcpwatchd-trace, else, "
        "as root, one of the process's own.",
        needs_restart=True,
    ),
    Setting(
        "Trace",
        "TraceBuffer",
        "512K",
        "SIZE",
        parse_buffer,
        "memory a CPU for the trace, 16K to 16M",
        "All CPUs share 16M. In the service it takes a restart of tcpwatchd-trace.service.",
        needs_restart=True,
    ),
    Setting(
        "Rules",
        "Fold",
        "no",
        "N/SPAN|no",
        parse_fold,
        "after N connections in a time that differ only in their source ports, make one entry of the rest",
        "As in 20/10s. The time is 1s to 1h, and N at most 1000000.",
    ),
)
RULES_SECTION = "Rules"
RULE_HELP = {
    "Ignore": "Connections that are not written, but counted.",
    "Report": "Connections that are, though a later rule would say otherwise.",
    "Notice": "Connections whose entry has the priority notice.",
    "Warning": "Connections whose entry has the priority warning.",
}
"""Keys of the rules' section that can be there many times, each with an expression."""
SECTIONS = tuple(dict.fromkeys(setting.section for setting in SETTINGS))
BY_KEY = {(setting.section, setting.key): setting for setting in SETTINGS}
