"""The configuration file and its drop-ins: which are read, what they say, and what is wrong with them."""

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.config.files import (
    MOST_BYTES,
    MOST_FAULTS,
    Assignment,
    ConfigError,
    Fault,
    find_hidden,
    list_files,
    make_printable,
    read_file,
    split_assignments,
)
from tcpwatchd.config.flags import load, parse_arguments
from tests.daemon import run_program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONF = "tcpwatchd/tcpwatchd.conf"
SECTIONS = ("One", "Two")
WORDS = "expected a word such as ingress, inbound"


def write(path: Path, content: bytes | str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def split(text: str) -> tuple[list[Assignment], list[tuple[int | None, str]]]:
    faults: list[Fault] = []
    found = list(split_assignments("x.conf", text, SECTIONS, faults))
    return found, [(fault.line, fault.text) for fault in faults]


# Which files there are.


def list_names(root: Path) -> list[str]:
    faults: list[Fault] = []
    paths = list_files(str(root), faults)
    assert faults == []
    return [os.path.relpath(path, root) for path in paths]


def test_no_file_is_needed(tmp_path: Path) -> None:
    assert list_names(tmp_path) == []


def test_the_main_file_then_drop_ins_by_their_names(tmp_path: Path) -> None:
    made = [
        f"run/{CONF}.d/20-b.conf",
        f"usr/lib/{CONF}.d/30-c.conf",
        f"etc/{CONF}.d/10-a.conf",
        f"etc/{CONF}",
    ]
    for name in made:
        write(tmp_path / name)
    for name in ("README", "x.conf~", "x.conf.dpkg-new", "conf"):
        write(tmp_path / f"etc/{CONF}.d" / name)
    write(tmp_path / "usr/lib" / CONF)
    assert list_names(tmp_path) == [made[3], made[2], made[0], made[1]]


@pytest.mark.parametrize(
    ("folders", "chosen"),
    [(["usr/lib", "run", "etc"], "etc"), (["usr/lib", "run"], "run"), (["usr/lib", "etc"], "etc")],
)
def test_a_file_replaces_that_of_the_same_name(tmp_path: Path, folders: list[str], chosen: str) -> None:
    for folder in folders:
        write(tmp_path / folder / f"{CONF}.d" / "a.conf")
    assert list_names(tmp_path) == [f"{chosen}/{CONF}.d/a.conf"]


def test_a_link_to_dev_null_masks(tmp_path: Path) -> None:
    for name in ("a.conf", "b.conf"):
        write(tmp_path / f"usr/lib/{CONF}.d" / name)
    (tmp_path / f"etc/{CONF}.d").mkdir(parents=True)
    (tmp_path / f"etc/{CONF}.d/a.conf").symlink_to("/dev/null")
    (tmp_path / f"etc/{CONF}").symlink_to("/dev/null")
    assert list_names(tmp_path) == [f"etc/{CONF}", f"usr/lib/{CONF}.d/b.conf"]
    assert read_file(f"{tmp_path}/etc/{CONF}", 9) == ""


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / f"etc/{CONF}.d").mkdir(parents=True)
    (tmp_path / f"etc/{CONF}.d/a.conf").symlink_to(write(tmp_path / "else", "text\n"))
    assert [read_file(str(tmp_path / name), 9) for name in list_names(tmp_path)] == ["text\n"]


# What they say.


def test_assignments() -> None:
    found, faults = split(
        "# c\n; c\n\n[One]\nA=1\n  B = 2 = 3  \n\t[Two]  \r\nA=\r\n  # c\nC=x#y ; z\n[One]\nA=again"
    )
    assert faults == []
    assert [(a.section, a.key, a.value, a.line) for a in found] == [
        ("One", "A", "1", 5),
        ("One", "B", "2 = 3", 6),
        ("Two", "A", "", 8),
        ("Two", "C", "x#y ; z", 10),
        ("One", "A", "again", 12),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=a \\\n b", "a b"),
        ("A=a\\\nb", "a b"),
        ("A= a \\\n# c \\\n  ; c\n\t b \\\n c", "a b c"),
        ("A=\\\n  a", "a"),
        ("A= \\\n\\\n  a \\\n\\\n b", "a  b"),
        ("A=a \\\n\n", "a"),
        ("A=a \\  \r\n  b\r\n", "a b"),
        ("A=x\\y", "x\\y"),
    ],
)
def test_lines_go_on_after_a_backslash(text: str, value: str) -> None:
    found, faults = split(f"[One]\n{text}\nB=end")
    assert faults == []
    assert found[0].value == value
    assert (found[1].key, found[1].value) == ("B", "end")


def test_the_last_line_may_go_on() -> None:
    found, faults = split("[One]\nA=a \\")
    assert ([one.value for one in found], faults) == (["a"], [])


@pytest.mark.parametrize(
    "text",
    [
        "A=%a% %b%",
        "  A  =   %a%   %b%  ",
        "A=%a% \\\n   %b%",
        "A=%a%\\\n# a comment\n%b% \\\n",
        "A=\\\n  # a comment\n    %a% \\\n  \t %b%",
        "A= \\\n \\\n%a% and \\\n  \\\n     %b%",
        "\tA =\té%a% \\\n\té %b%",
    ],
)
def test_each_character_of_a_value_is_found_where_it_stands(text: str) -> None:
    text = f"\n[One]\n{text}"
    (found,), _ = split(text)
    for mark in "%a%", "%b%":
        before = text[: text.index(mark)]
        place = before.count("\n") + 1, len(before) - before.rfind("\n")
        assert found.find(found.value.index(mark)) == place


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("[One]\nnonsense", [(2, "expected Setting=value, found 'nonsense'")]),
        ("[One]\n = 5", [(2, "expected Setting=value, found '= 5'")]),
        ("A=1\nB=2", [(1, "expected [Section] before 'A='"), (2, "expected [Section] before 'B='")]),
        ("\ufeff[One]", [(1, "expected Setting=value, found '\\ufeff[One]'")]),
        ("[One\nA=1", [(1, "expected [Section], found '[One'")]),
        ("[]\nA=1", [(1, "expected [Section], found '[]'")]),
        ("[One] # c", [(1, "expected [Section], found '[One] # c'")]),
        ("[One] \\\nA=1", [(1, "expected [Section], found '[One]'")]),
        ("[Three]", [(1, "no section '[Three]'; there are [One], [Two]")]),
        (" [one]\nA=1\nx\n[Two]\nx", [(1, "no section '[one]'; there are [One], [Two]"),
                                      (5, "expected Setting=value, found 'x'")]),
        ("[\x9b31m]", [(1, "no section '[\\x9b31m]'; there are [One], [Two]")]),
        (f"[One]\n{'x' * 99}", [(2, f"expected Setting=value, found '{'x' * 57}...'")]),
    ],
)  # fmt: skip
def test_lines_that_say_nothing(text: str, faults: list[tuple[int, str]]) -> None:
    assert split(text)[1] == faults


# What is wrong with a file.


def make_folder(path: Path) -> None:
    path.mkdir()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def make_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_nothing(_path: Path) -> None:
    pass


def containing(content: bytes | str) -> Callable[[Path], object]:
    return lambda path: write(path, content)


def rule(text: str) -> Callable[[Path], object]:
    return containing(f"# One line before.\n[Rules]\nIgnore={text}\n")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (make_nothing, ": No such file or directory"),
    "dangling link": (make_dangling, ": No such file or directory"),
    "loop of links": (make_loop, ": Too many levels of symbolic links"),
    "directory": (make_folder, ": Is a directory"),
    "FIFO": (make_fifo, ": Not a regular file"),
    "socket": (make_socket, ": No such device or address"),
    "device": (make_zeros, ": Not a regular file"),
    "NUL": (containing("[Watch]\nInterval=1s\0\n"), ":2: no text: it has the character '\\x00'"),
    "escape": (containing("[Watch]\n#\x1b[31m"), ":2: no text: it has the character '\\x1b'"),
    "lone CR": (containing("[Watch]\r\nInterval=1s\rx\r\n"), ":2: no text: it has the character '\\r'"),
    "Latin-1": (containing("# München\n\n# München".encode("latin-1")), ":1: no text: not UTF-8"),
    "binary": (containing(b"\n\n\x7fELF\2\1\1" + bytes(range(256))), ":4: no text: not UTF-8"),
    "surrogate": (containing(b"# \xed\xa0\x80"), ":1: no text: not UTF-8"),
    "10 MB of rules": (containing("[Rules]\n" + "Ignore=ip\n" * 1_000_000), ": larger than 1 MiB"),
    "no section": (containing("Interval=1s"), ":1: expected [Section] before 'Interval='"),
    "unknown section": (
        containing("[Watch]\n[Wacht]\nInterval=1s\n"),
        ":2: no section '[Wacht]'; there are [Watch], [Trace], [Rules]",
    ),
    "unknown key": (
        containing("[Trace]\nBuffer=1\n"),
        ":2: no setting 'Buffer=' in [Trace]; there are Trace, TraceInstance, TraceBuffer",
    ),
    "key of another section": (containing("[Watch]\nIgnore=ip"), ":2: no setting 'Ignore=' in [Watch]; "),
    "unknown rule": (containing("[Rules]\nDrop=ip"), ":2: no setting 'Drop=' in [Rules]; there are Fold,"),
    "empty value": (containing("[Watch]\nInterval=\n"), ":2: [Watch] Interval=: expected a value, "),
    "out of range": (
        containing("[Watch]\nInterval=2d"),
        ":2: [Watch] Interval=: not a time span from 100ms to 1d: '2d'",
    ),
    "no choice": (
        containing("[Watch]\nReport=all"),
        ":2: [Watch] Report=: not one of opened, closed, both: 'all'",
    ),
    "long value": (containing(f"[Trace]\nTraceBuffer={'9' * 1_000_000}"), ":2: [Trace] TraceBuffer=: not"),
    "empty rule": (rule(""), ":3:8: [Rules] Ignore=: expected an expression, found the end"),
    "unknown word": (rule("host 10.0.0.5 and tpc"), f":3:26: [Rules] Ignore=: {WORDS}"),
    "no end": (rule("ip and \\\n  not"), f":4:6: [Rules] Ignore=: {WORDS}"),
    "10,000 parentheses": (
        rule("(" * 10_000 + "ip" + ")" * 10_000),
        ":3:58: [Rules] Ignore=: expected no more than 50 of these inside each other",
    ),
    "10,000 nots": (
        rule("not " * 10_000 + "ip"),
        ":3:208: [Rules] Ignore=: expected no more than 50 of these inside each other",
    ),
    "1 MB": (
        rule("ip or " * 160_000 + "ipx"),
        f":3:960008: [Rules] Ignore=: {WORDS}",
    ),
    "1 MB of a name": (rule("process " + "[" * 1_000_000), ":3:16: [Rules] Ignore=: expected a pattern of"),
    "1 MB of a service": (rule("port " + "a" * 1_000_000), ":3:13: [Rules] Ignore=: expected a port"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_with_its_place(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.conf"
    make, expected = BAD[name]
    make(path)
    with pytest.raises(ConfigError) as raised:
        load(parse_arguments(["--config", str(path)]))
    (fault,) = raised.value.faults
    assert str(fault).startswith(f"{path}{expected}")
    assert str(fault).isprintable()
    assert len(str(fault)) < len(str(path)) + 300
    for flag in "--check-config", "--config":
        done = run_program(flag, str(path), "--once")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"tcpwatchd: {fault}\n")


@pytest.mark.parametrize(
    "name", ["dangling link", "loop of links", "directory", "FIFO", "NUL", "empty value"]
)
def test_a_bad_drop_in_is_refused_as_well(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"run/{CONF}.d/x.conf"
    path.parent.mkdir(parents=True)
    make, expected = BAD[name]
    make(path)
    with pytest.raises(ConfigError) as raised:
        load(parse_arguments([]), str(tmp_path))
    assert str(raised.value).startswith(f"{path}{expected}")


@pytest.mark.root
def test_a_file_that_others_may_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.conf", "[Watch]\nInterval=1s\n")
    path.chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = run_program("--check-config", str(path), prefix=nobody)
    assert (done.returncode, done.stderr) == (2, f"tcpwatchd: {path}: Permission denied\n")
    path.chmod(0o644)
    done = run_program("--check-config", str(path), prefix=nobody)
    assert (done.returncode, done.stdout, done.stderr) == (0, "OK\n", "")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (write, "Not a directory"),
        (make_loop, "Too many levels of symbolic links"),
        (make_fifo, "Not a directory"),
    ],
)
def test_a_drop_in_folder_that_is_none(tmp_path: Path, make: Callable[[Path], object], expected: str) -> None:
    """The files are read all the same, for what is wrong with them."""
    path = tmp_path / f"usr/lib/{CONF}.d"
    path.parent.mkdir(parents=True)
    make(path)
    main = write(tmp_path / "etc" / CONF, "[Watch]\nInterval=0\n")
    with pytest.raises(ConfigError) as raised:
        load(parse_arguments([]), str(tmp_path))
    found = [str(fault) for fault in raised.value.faults]
    assert found[0] == f"{path}: {expected}"
    assert found[1].startswith(f"{main}:2: ")


@pytest.mark.parametrize(
    "name",
    [
        b"a\nb.conf",
        b"\x1b[31mred.conf",
        b"\xff\xfe.conf",
        "\u202egnp.conf".encode(),
        b"\x9b.conf",
        b"a'\"\\\t.conf",
    ],
)
def test_hostile_names_of_files(tmp_path: Path, name: bytes) -> None:
    folder = os.fsencode(tmp_path / f"etc/{CONF}.d")
    os.makedirs(folder)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(b"[Rules]\nIgnore=tcp\n")
    with pytest.raises(ConfigError) as raised:
        load(parse_arguments([]), str(tmp_path))
    assert str(raised.value).isprintable()
    assert ".conf:2:8: " in str(raised.value)
    done = run_program("--check-config", os.fsdecode(os.path.join(folder, name)))
    assert done.returncode == 2
    assert re.fullmatch(r"[ -~]*\.conf:2:8: [ -~]*\n", done.stderr)


def test_plain_names_stay_as_they_are() -> None:
    assert make_printable("/etc/é b's \\x.conf") == "/etc/é b's \\x.conf"


def test_the_largest_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x", "#" * MOST_BYTES)
    assert len(read_file(str(path), MOST_BYTES)) == MOST_BYTES
    write(path, "#" * (MOST_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        read_file(str(path), MOST_BYTES)


def test_files_that_are_refused_stay_not_open(tmp_path: Path) -> None:
    """A reload may look at them a hundred times."""
    make_fifo(tmp_path / "fifo")
    before = os.listdir("/proc/self/fd")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "none"):
        with pytest.raises(ConfigError):
            read_file(str(path), MOST_BYTES)
    assert os.listdir("/proc/self/fd") == before


def test_all_faults_are_listed_in_order_and_the_first_is_told(tmp_path: Path) -> None:
    main = write(
        tmp_path / "etc" / CONF, "[Watch]\nx\nInterval=0\n[Bogus]\nA=1\n[Rules]\nIgnore=tcp\nFold=1\n"
    )
    drop_in = write(tmp_path / f"etc/{CONF}.d/a.conf", "[Trace]\nTrace=yes\n")
    with pytest.raises(ConfigError) as raised:
        load(parse_arguments([]), str(tmp_path))
    places = [(fault.path, fault.line, fault.column) for fault in raised.value.faults]
    assert places == [
        *((str(main), line, column) for line, column in [(2, None), (3, None), (4, None), (7, 8), (8, None)]),
        (str(drop_in), 2, None),
    ]
    first = f"{main}:2: expected Setting=value, found 'x'"
    assert str(raised.value) == f"{first} (and 5 more: --check-config lists them)"
    done = run_program("--check-config", str(main))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "".join(f"tcpwatchd: {fault}\n" for fault in raised.value.faults[:5])


def test_all_files_together_are_bounded_and_so_are_faults(tmp_path: Path) -> None:
    """However many drop-ins there are; a reload reads them in the middle of everything."""
    for number in range(3):
        write(tmp_path / f"etc/{CONF}.d/{number}.conf", "#" * (MOST_BYTES // 2))
    with pytest.raises(ConfigError, match=r"2\.conf: with the files before it larger than 1 MiB$"):
        load(parse_arguments([]), str(tmp_path))
    for number in range(3):
        write(tmp_path / f"etc/{CONF}.d/{number}.conf", "[Rules]\n" + "x\n" * 90)
    with pytest.raises(ConfigError, match=r"and more than 99 more: ") as raised:
        load(parse_arguments([]), str(tmp_path))
    assert len(raised.value.faults) == MOST_FAULTS + 1


def test_what_an_editor_leaves_is_no_drop_in(tmp_path: Path) -> None:
    """Nor is what was the service's own directory in an older version."""
    for name in ("x.conf~", "x.conf.dpkg-old", ".x.conf"):
        write(tmp_path / f"etc/{CONF}.d/{name}", "wrong")
    (tmp_path / f"etc/{CONF}.d/.#x.conf").symlink_to("user@host.1234")
    write(tmp_path / "run/private/tcpwatchd/tcpwatchd.conf.d/x.conf", "wrong")
    (tmp_path / "run/tcpwatchd").symlink_to("private/tcpwatchd")
    assert load(parse_arguments([]), str(tmp_path)).rules == []


def test_what_the_service_may_not_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / f"etc/{CONF}.d/x.conf", "")
    folder = path.parent
    folder.chmod(0o755)
    for mode, hidden in ((0o644, []), (0o640, [path])):
        path.chmod(mode)
        assert [fault.path for fault in find_hidden([str(path)])] == list(map(str, hidden))
    path.chmod(0o644)
    folder.chmod(0o700)
    assert [fault.path for fault in find_hidden([str(path)])] == [str(folder)]


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbf[Watch]\nInterval=7s\n")
    assert load(parse_arguments(["--config", str(path)])).interval == 7
