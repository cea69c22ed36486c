"""The paths of control groups, of a tree of directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tcpwatchd.connection import ControlGroup
from tcpwatchd.owners.groups import MOST_TOLD, Groups

MADE = 10**9
"""Numbers that no directory of the tests has."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a hierarchy of version 2 is mounted."""
    (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
    return tmp_path


def make(folder: Path) -> int:
    """The number of a control group that is made there, with what the kernel puts into each."""
    folder.mkdir(parents=True)
    (folder / "cgroup.procs").write_text("1\n")
    return folder.stat().st_ino


def test_those_that_are_there_are_found(root: Path) -> None:
    paths = ["/init.scope", "/system.slice", "/system.slice/a.service", "/a/b/c/d/e"]
    numbers = [make(root / path[1:]) for path in paths]
    groups = Groups(str(root))
    assert groups.known
    assert [groups.find_path(number) for number in numbers] == list(map(os.fsencode, paths))
    assert groups.find_path((root / "a" / "b").stat().st_ino) == b"/a/b"


def test_names_of_any_bytes(root: Path) -> None:
    name = b"a\nb\xff"
    number = make(Path(os.fsdecode(os.fsencode(root) + b"/" + name)))
    assert Groups(str(root)).find_path(number) == b"/" + name


def test_neither_files_nor_links_are_groups(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (root / "link").symlink_to(other)
    (root / "itself").symlink_to(root)
    groups = Groups(str(root))
    for path in (root, root / "cgroup.controllers", other, root / "link"):
        assert groups.find_path(path.stat().st_ino) is None


def test_one_that_was_made_meanwhile_is_looked_for_once(root: Path) -> None:
    """At a poll, and only when it was asked for: a walk takes its time."""
    groups = Groups(str(root))
    number = make(root / "late.service")
    assert not groups.refresh()
    assert groups.find_path(number) is None
    assert groups.refresh()
    assert groups.find_path(number) == b"/late.service"
    assert not groups.refresh()
    assert [groups.find_path(MADE), groups.refresh()] == [None, True]
    assert [groups.find_path(MADE), groups.refresh()] == [None, False]
    assert [groups.find_path(0), groups.refresh()] == [None, False]


def test_what_the_kernel_told_outlives_the_group(root: Path) -> None:
    folder = root / "brief.service"
    groups = Groups(str(root))
    number = make(folder)
    assert groups.find_path(number) is None
    groups.add([ControlGroup(number, b"/brief.service")])
    (folder / "cgroup.procs").unlink()
    folder.rmdir()
    assert groups.refresh()
    assert groups.find_path(number) == b"/brief.service"


def test_what_is_told_is_bounded(root: Path) -> None:
    """Those that are there are found again, and of those that are gone the newest are kept."""
    groups = Groups(str(root))
    there = make(root / "first.service")
    groups.add([ControlGroup(there, b"/first.service")])
    for number in range(3 * MOST_TOLD):
        groups.add([ControlGroup(MADE + number, b"/gone/%d" % number)])
        if number % 1000 == 0:
            groups.refresh()
        assert len(groups.told) <= MOST_TOLD + 1000
    assert groups.find_path(there) == b"/first.service"
    assert groups.find_path(MADE) is None
    for number in range(3 * MOST_TOLD - MOST_TOLD // 2, 3 * MOST_TOLD):
        assert groups.find_path(MADE + number) == b"/gone/%d" % number


def test_very_many_between_two_polls(root: Path) -> None:
    groups = Groups(str(root))
    for number in range(5 * MOST_TOLD):
        groups.add([ControlGroup(MADE + number, b"/gone/%d" % number)])
        assert len(groups.told) <= 2 * MOST_TOLD
    last = 5 * MOST_TOLD - 1
    assert groups.find_path(MADE + last) == b"/gone/%d" % last


def test_what_another_process_was_told(root: Path) -> None:
    """What this one was told is newer."""
    groups = Groups(str(root))
    groups.add([ControlGroup(1, b"/new")])
    groups.restore({1: b"/old", 2: b"/kept"})
    assert [groups.find_path(number) for number in (1, 2, 3)] == [b"/new", b"/kept", None]
    assert list(groups.told) == [1, 2]


@pytest.mark.parametrize("there", [True, False])
def test_without_a_hierarchy_of_version_2_nothing_is_known(tmp_path: Path, there: bool) -> None:
    """Numbers of other hierarchies could be taken for those of the kernel's records."""
    root = tmp_path / "cgroup"
    number = make(root / "system.slice") if there else 5
    groups = Groups(str(root))
    groups.add([ControlGroup(number, b"/system.slice")])
    groups.restore({number: b"/system.slice"})
    assert not groups.known
    assert (groups.find_path(number), groups.told) == (None, {})


def list_folders(root: str) -> set[tuple[int, str]]:
    with os.scandir(root) as entries:
        return {(entry.inode(), entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)}
