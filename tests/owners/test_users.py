"""Names of users, of a file like /etc/passwd."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.owners.users import LONGEST_NAME, MOST_BYTES, Users, parse_passwd

if TYPE_CHECKING:
    from pathlib import Path

ROOT = "root:x:0:0:root:/root:/bin/bash\n"


def format_user(name: str, number: int) -> str:
    return f"{name}:x:{number}:{number}:,,,:/home/{name}:/bin/sh\n"


def read_users(path: Path) -> Users:
    users = Users(str(path))
    users.refresh()
    return users


def test_the_names_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    path.write_text(ROOT + format_user("alice", 1000) + format_user("last", 4294967294).rstrip("\n"))
    users = read_users(path)
    names = [users.find_name(number) for number in (0, 1000, 4294967294, 1001)]
    assert names == ["root", "alice", "last", None]


def test_before_it_was_read_nobody_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text(ROOT)
    assert Users(str(tmp_path / "passwd")).find_name(0) is None


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    path.write_text(format_user("alice", 1000))
    users = Users(str(path))
    assert [users.refresh(), users.refresh(), users.refresh()] == [True, False, False]
    new = tmp_path / "passwd+"
    new.write_text(format_user("bruce", 1000))
    os.utime(new, ns=(0, path.stat().st_mtime_ns))
    new.rename(path)  # as passwd(1) does it; it has the same size
    assert [users.refresh(), users.refresh()] == [True, False]
    assert users.find_name(1000) == "bruce"
    path.write_text(format_user("bruce", 1000) + format_user("bob", 1001))
    assert users.refresh()
    assert users.find_name(1001) == "bob"


def test_a_file_that_cannot_be_read_names_nobody(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    users = Users(str(path))
    assert users.refresh()
    assert users.find_name(0) is None
    path.write_text(ROOT)
    assert users.refresh()
    assert users.find_name(0) == "root"
    path.unlink()
    assert users.refresh()
    assert users.find_name(0) is None
    path.mkdir()
    assert users.refresh()
    assert users.find_name(0) is None


def test_lines_that_make_no_sense_name_nobody() -> None:
    lines = [
        b"# a comment",
        b"",
        b":::::::",
        b"+::::::",
        b"-nobody::::::",
        b"short:x:1:1",
        b"long:x:2:2:a:b:c:d",
        b":x:3:3:nameless:/:/bin/sh",
        b"negative:x:-4:4::/:/bin/sh",
        b"hexadecimal:x:0x5:5::/:/bin/sh",
        b"spaced:x: 6 :6::/:/bin/sh",
        b"digits:x:" + b"9" * 5000 + b":7::/:/bin/sh",
        b"x" * (LONGEST_NAME + 1) + b":x:7:7::/:/bin/sh",
        b"arabic:x:\xd9\xa7:7::/:/bin/sh",
        b"right:x:8:8::/:/bin/sh",
        b"\xff\xff\xff",
    ]
    assert parse_passwd(b"\n".join(lines)) == {8: "right"}


def test_of_several_names_the_first() -> None:
    text = format_user("root", 0) + format_user("toor", 0)
    assert parse_passwd(text.encode()) == {0: "root"}


def test_a_hostile_name_is_printable() -> None:
    line = b"a\x1b[31m\xff\\:x:1:1::/:/bin/sh\r\n"
    assert parse_passwd(line) == {1: r"a\x1b[31m\xff\\"}


def test_of_a_huge_file_only_the_beginning_is_read(tmp_path: Path) -> None:
    """No drain waits for all of it; the name that is cut is nobody's."""
    path = tmp_path / "passwd"
    line = format_user("x" * LONGEST_NAME, 7)
    with open(path, "w") as file:
        file.write(ROOT)
        for _ in range(MOST_BYTES // len(line) + 1):
            file.write(line)
        file.write(format_user("late", 9))
    users = read_users(path)
    assert [users.find_name(0), users.find_name(7), users.find_name(9)] == ["root", "x" * LONGEST_NAME, None]


@given(st.binary(max_size=100))
def test_random_bytes(text: bytes) -> None:
    names = parse_passwd(text + b"\nalice:x:1:1::/:/bin/sh")
    assert names[1]
    assert all(name.isprintable() and "\n" not in name for name in names.values())
