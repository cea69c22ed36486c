"""The one table of settings: what the file, the command line, the manual and the shipped file are made of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from tcpwatchd.config.values import (
    count_from,
    one_of,
    parse_bool,
    parse_buffer,
    parse_fold,
    parse_instance,
    parse_interval,
    parse_networks,
    parse_port_ranges,
    parse_window,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class Setting(NamedTuple):
    """`key` is its name in the file. The flag and the attribute of the settings follow from that, and of port
    scans from the section too.
    """

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
        key = self.section + self.key if self.section == SCAN_SECTION else self.key
        return "--" + re.sub("(?<=.)(?=[A-Z])", "-", key).lower()

    @property
    def name(self) -> str:
        return self.flag[2:].replace("-", "_")

    @property
    def is_switch(self) -> bool:
        return self.parse is parse_bool

    @property
    def is_list(self) -> bool:
        """Whether what is given more than once in files adds up."""
        return self.parse in (parse_networks, parse_port_ranges)


SCAN_SECTION = "Scan"
MOST_LIMIT = 1000
SETTINGS = (
    Setting(
        "Watch",
        "Interval",
        "10s",
        "SPAN",
        parse_interval,
        "time between polls, 100ms to 1d",
        'A plain number is seconds; units are those of systemd.time(7), as in "1min 30s".',
    ),
    Setting(
        "Watch",
        "Report",
        "opened",
        "opened|closed|both",
        one_of("opened", "closed", "both"),
        "when a connection is reported: as it opens, as it closes, with what is known then, or both times",
        "What closes has its duration, how it ended and, where the kernel tells them, its bytes.",
        needs_restart=True,
    ),
    Setting(
        "Watch",
        "CommandLines",
        "no",
        "yes|no",
        parse_bool,
        "report the command line of who connects too, which may hold secrets",
        "Its first 256 bytes are the field PROCESS_COMMAND_LINE.",
    ),
    Setting(
        "Watch",
        "MessageOwner",
        "no",
        "yes|no",
        parse_bool,
        "end each message with who owns the connection, for people who read along",
        'As in "(curl[4242], alice, cron.service)"; and when it closed, with '
        '"(12.3 s, 4.2 kB sent, 1.1 MB received)", as its source sees it.',
    ),
    Setting(
        "Watch",
        "Output",
        "auto",
        "auto|journal|text|json",
        one_of("auto", "journal", "text", "json"),
        "where events go; auto is the journal when stdout or stderr is connected to it, else text",
        'With "text", each connection is one line on standard output, in local time, and what else there is '
        'to say goes to standard error. "Open connection" was open before the watch began; '
        '"(direction guessed)" is said where it was. With "json", each event of any kind is one object on a '
        "line of standard output. "
        'The unit of the service says "journal", by the flag, and so the file changes nothing for it.',
        needs_restart=True,
    ),
    Setting(
        "Trace",
        "Trace",
        "auto",
        "auto|no|require",
        one_of("auto", "no", "require"),
        "whether to use the kernel's trace; auto, when it is to be had",
        'With "auto" it says so when there is none, and only polls. With "require" it ends with status 2.',
        needs_restart=True,
    ),
    Setting(
        "Trace",
        "TraceInstance",
        None,
        "NAME",
        parse_instance,
        "the instance of tracefs to use; made when it is not there, and removed at the end",
        "If it is not set, it is the one that the unit of the service binds at /run/tcpwatchd-trace, else, "
        "as root, one of the process's own. The service needs it not to be set: its units bind the instance "
        "tcpwatchd.",
        needs_restart=True,
    ),
    Setting(
        "Trace",
        "TraceBuffer",
        "512K",
        "SIZE",
        parse_buffer,
        "memory a CPU for the trace, 16K to 16M",
        "K and M go by 1024; a plain number is bytes. All CPUs share 16M. If it is not set, an instance that "
        "stands keeps what it has: that of the service until tcpwatchd-trace.service is restarted.",
        needs_restart=True,
    ),
    Setting(
        "Rules",
        "Fold",
        "no",
        "N/SPAN|no",
        parse_fold,
        "after N connections in a time that differ only in their source ports, make one entry of the rest",
        'As in "20/10s". The time is 1s to 1h, and N 1 to 1000000.',
    ),
    Setting(
        SCAN_SECTION,
        "Enabled",
        "yes",
        "yes|no",
        parse_bool,
        "report port scans: sources that try many ports of this machine",
        "What a source tried is a connection that was accepted here, or a packet to a closed port, where the "
        "kernel tells of the resets that answer it: Linux 6.10 and newer, together with Trace=.",
        needs_restart=True,
    ),
    Setting(
        SCAN_SECTION,
        "Ports",
        "3",
        "N",
        count_from(1, MOST_LIMIT),
        "a source scans that tries more than N different ports in the window, 1 to 1000",
        "A client that uses more than so many services of this machine within the window is told too.",
    ),
    Setting(
        SCAN_SECTION,
        "Window",
        "1min",
        "SPAN",
        parse_window,
        "the time that is looked at, 1s to 1d; there is at most one entry a source in it",
        "A plain number is seconds.",
    ),
    Setting(
        SCAN_SECTION,
        "Addresses",
        "20",
        "N|no",
        count_from(1, MOST_LIMIT, or_no=True),
        "a source sweeps that tries the same port at more than N addresses in the window, 1 to 1000",
    ),
    Setting(
        SCAN_SECTION,
        "SlowPorts",
        "10",
        "N|no",
        count_from(1, MOST_LIMIT, or_no=True),
        "a source scans, slowly, that tries more than N different ports in the longer window, 1 to 1000",
    ),
    Setting(
        SCAN_SECTION,
        "SlowWindow",
        "1h",
        "SPAN",
        parse_window,
        "the longer window, up to 1d; there is at most one entry in it of a source that scans slowly",
    ),
    Setting(
        SCAN_SECTION,
        "Allow",
        None,
        "NETWORKS",
        parse_networks,
        "networks and addresses that may scan",
        'As in "192.0.2.0/24 2001:db8::/32 198.51.100.7". More of these lines add up, and an empty one takes '
        "back all before it. The addresses of this machine may anyway.",
    ),
    Setting(
        SCAN_SECTION,
        "IgnorePorts",
        None,
        "PORTS",
        parse_port_ranges,
        "ports that anybody may try",
        'As in "50000-50100 6000", for the passive ports of an FTP server. More of these lines add up, and '
        "an empty one takes back all before it.",
    ),
    Setting(
        SCAN_SECTION,
        "Prefix6",
        "64",
        "BITS",
        count_from(1, 128),
        "addresses of IPv6 that have so many bits in common are one source, 1 to 128",
    ),
)
RULES_SECTION = "Rules"
RULE_HELP = {
    "Ignore": "Connections that are not written, only counted.",
    "Report": "Connections that are written, though a later rule would say otherwise.",
    "Notice": "Connections whose entries have the priority notice.",
    "Warning": "Connections whose entries have the priority warning.",
}
"""Keys of the rules' section that can be there many times, each with an expression."""
SECTIONS = tuple(dict.fromkeys(setting.section for setting in SETTINGS))
BY_KEY = {(setting.section, setting.key): setting for setting in SETTINGS}
