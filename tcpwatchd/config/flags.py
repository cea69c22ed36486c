"""The command line, and what it and the files say together."""

from __future__ import annotations

import argparse
import os
import socket
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from tcpwatchd import __version__
from tcpwatchd.config.files import (
    MOST_BYTES,
    MOST_FAULTS,
    Assignment,
    ConfigError,
    Fault,
    list_files,
    make_printable,
    read_file,
    split_assignments,
)
from tcpwatchd.config.settings import BY_KEY, RULE_HELP, RULES_SECTION, SECTIONS, SETTINGS
from tcpwatchd.failure import UsageError
from tcpwatchd.policy.expression import ExpressionError, quote
from tcpwatchd.policy.policy import Selection
from tcpwatchd.policy.rules import Rule, compile_rule
from tcpwatchd.policy.scans import ScanLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tcpwatchd.config.settings import Setting
    from tcpwatchd.connection import Report
    from tcpwatchd.policy.expression import Addresses
    from tcpwatchd.policy.folding import Limit


class Given(NamedTuple):
    """A value, as it was written, and where: a flag, or file and line."""

    value: Any
    text: str
    source: str


class Settings(argparse.Namespace):
    """The values in force. `interval` is in seconds, `trace_buffer` in KiB a CPU."""

    interval: float
    output: str
    trace: str
    trace_instance: str | None
    trace_buffer: int
    report: Report
    message_owner: bool
    command_lines: bool
    fold: Limit | None
    rules: list[Rule]
    scan_enabled: bool
    scan_ports: int
    scan_window: int
    scan_addresses: int | None
    scan_slow_ports: int | None
    scan_slow_window: int
    scan_allow: tuple[Addresses, ...] | None
    scan_ignore_ports: tuple[tuple[int, int], ...] | None
    scan_prefix6: int
    given: dict[str, Given]
    """Settings that are not at their defaults."""
    config: str | None
    """The file that was named."""
    check_config: bool | str
    show_config: bool
    trace_setup: bool
    once: bool

    @property
    def wanted_buffer(self) -> int | None:
        """None if none was asked for: then an instance that stands keeps what it has."""
        return self.trace_buffer if "trace_buffer" in self.given else None

    @property
    def selection(self) -> Selection:
        scan = ScanLimits(
            self.scan_ports,
            self.scan_window,
            self.scan_addresses,
            self.scan_slow_ports,
            self.scan_slow_window,
            self.scan_allow or (),
            self.scan_ignore_ports or (),
            self.scan_prefix6,
        )
        return Selection(self.rules, self.fold, scan if self.scan_enabled and not self.once else None)

    def cite(self, name: str) -> str:
        """A setting that was given, as it was."""
        _, text, source = self.given[name]
        (setting,) = (one for one in SETTINGS if one.name == name)
        return f"{source} {text}" if source == setting.flag else f"{source}: {setting.key}={text}"


class Parser(argparse.ArgumentParser):
    """Leaves it to the caller to say what is wrong; the usage is there for --help."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse_arguments(arguments: Sequence[str]) -> Settings:
    """The flags alone, of which those of settings are in `given`. Raises UsageError, and SystemExit with
    status 0 after --help and --version.
    """
    settings = make_parser().parse_args(arguments, namespace=Settings())
    flags = [(setting, vars(settings).pop(setting.name)) for setting in SETTINGS]
    settings.given = {
        setting.name: Given(given[0], given[1], setting.flag) for setting, given in flags if given is not None
    }
    if "" in (settings.config, settings.check_config):
        raise UsageError("--config, --check-config: expected the name of a file, found ''")
    if isinstance(settings.check_config, str):
        if settings.config is not None:
            raise UsageError("--check-config FILE: not with --config, which names another")
        settings.config = settings.check_config
    return settings


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="tcpwatchd",
        description="Reports every new TCP connection of this machine, once. What is not given by a flag is "
        "taken from the configuration file, tcpwatchd.conf(5).",
        allow_abbrev=False,
    )
    add = parser.add_argument
    for setting in SETTINGS:
        default = "" if setting.default is None else f" (default: {setting.default})"
        if setting.is_switch:
            add(setting.flag, action=Switch, help=setting.help + default)
        else:
            kind = read_flag(setting)
            add(setting.flag, metavar=setting.form, type=kind, help=setting.help + default)
    add("--config", metavar="FILE", help="read this file, and no other and no drop-ins")
    add(
        "--check-config",
        metavar="FILE",
        nargs="?",
        default=False,
        const=True,
        help="say all that is wrong with the configuration, or with this file, and exit",
    )
    add(
        "--show-config",
        action="store_true",
        help="print the settings in force and where they are from, and exit",
    )
    add("--trace-setup", action="store_true", help="make the service's instance, and exit")
    add("--once", action="store_true", help="report what is open now, and exit")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


class Switch(argparse.BooleanOptionalAction):
    """A flag, and the same with "no-" before it."""

    def __call__(self, _parser: Any, settings: Any, _values: Any, flag: str | None = None) -> None:
        value = not (flag or "").startswith("--no-")
        setattr(settings, self.dest, (value, "yes" if value else "no"))


def read_flag(setting: Setting) -> Callable[[str], tuple[Any, str]]:
    def parse(text: str) -> tuple[Any, str]:
        try:
            return setting.parse(text), text
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def load(settings: Settings, root: str = "/") -> Settings:
    """With what the files say, and the defaults of the rest. Raises ConfigError.

    `settings` are the flags; `root` is where the folders of the files are.
    """
    faults: list[Fault] = []
    given: dict[str, Given] = {}
    rules: list[Rule] = []
    left = MOST_BYTES
    for path in list_files(root, faults) if settings.config is None else [settings.config]:
        try:
            text = read_file(path, left)
        except ConfigError as error:
            # A drop-in that is gone by now is none.
            faults += error.faults if settings.config is not None or os.path.lexists(path) else []
            continue
        left -= len(text.encode())
        for assignment in split_assignments(path, text, SECTIONS, faults):
            if len(faults) > MOST_FAULTS:
                break
            try:
                if assignment.section == RULES_SECTION and assignment.key in RULE_HELP:
                    rules.append(read_rule(assignment))
                else:
                    set_value(given, read_setting(assignment), assignment)
            except ConfigError as error:
                faults += error.faults
    if faults:
        raise ConfigError(faults)
    given |= settings.given
    defaults = {setting.name: setting.default and setting.parse(setting.default) for setting in SETTINGS}
    values = {**defaults, **{name: one.value for name, one in given.items()}}
    loaded = Settings(**{**vars(settings), **values, "rules": rules, "given": given})
    if loaded.scan_slow_window < loaded.scan_window:
        name = "scan_slow_window" if "scan_slow_window" in given else "scan_window"
        raise UsageError(f"{loaded.cite(name)}: SlowWindow= must not be shorter than Window=")
    return loaded


def set_value(given: dict[str, Given], setting: Setting, assignment: Assignment) -> None:
    """Raises ConfigError. An empty value is that of a setting that is not set."""
    path, section, key, text, _ = assignment
    if not text and setting.default is None:
        given.pop(setting.name, None)
        return
    try:
        value = setting.parse(text)
    except ValueError as error:
        raise ConfigError([Fault(path, assignment.line, None, f"[{section}] {key}=: {error}")]) from error
    before = given.get(setting.name)
    if setting.is_list and before:
        value, text = before.value + value, f"{before.text} {text}"
    given[setting.name] = Given(value, text, f"{make_printable(path)}:{assignment.line}")


def read_rule(assignment: Assignment) -> Rule:
    """Raises ConfigError."""
    path, section, key, text, _ = assignment
    if not text:
        raise ConfigError(
            [Fault(path, *assignment.find(0), f"[{section}] {key}=: expected an expression, found the end")]
        )
    try:
        return compile_rule(key, text, make_printable(path), assignment.line, find_port)
    except ExpressionError as error:
        line, column = assignment.find(error.offset)
        raise ConfigError([Fault(path, line, column, f"[{section}] {key}=: {error}")]) from error


def read_setting(assignment: Assignment) -> Setting:
    """Raises ConfigError for one that there is not, and for one that must have a value and has none."""
    path, section, key, text, _ = assignment
    setting = BY_KEY.get((section, key))
    if setting is None:
        known = [one.key for one in SETTINGS if one.section == section]
        known += RULE_HELP if section == RULES_SECTION else []
        fault = f"no setting {quote(key + '=')} in [{section}]; there are {', '.join(known)}"
    elif not text and setting.default is not None:
        fault = f"[{section}] {key}=: expected a value, found the end"
    else:
        return setting
    raise ConfigError([Fault(path, assignment.line, None, fault)])


def find_port(name: str) -> int:
    """Of a service, as in /etc/services. Raises OSError."""
    return socket.getservbyname(name, "tcp")


def format_settings(settings: Settings) -> str:
    """As a configuration file that says the same, with a comment before each setting: where it is from."""
    lines = []
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for setting in SETTINGS:
            if setting.section == section:
                given = settings.given.get(setting.name)
                text = given.text if given else setting.default
                lines.append(f"# {given.source if given else 'default'}")
                lines.append(f"#{setting.key}=" if text is None else f"{setting.key}={text}")
        if section == RULES_SECTION:
            for rule in settings.rules:
                lines += [f"# {rule.path}:{rule.line}", f"{rule.action}={rule.text}"]
    return "\n".join(lines[1:])
