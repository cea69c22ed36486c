"""The paths of control groups by their numbers.

The kernel tells of each one that is made; those that are older are found by one walk. Sockets can outlive the
group that they were made in, so what the kernel told is kept, also when the group is gone. A number is never
given twice (kernfs_new_node in fs/kernfs/dir.c).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tcpwatchd.connection import ControlGroup

ROOT = "/sys/fs/cgroup"
MOST_TOLD = 4096
"""Groups that the kernel told of and that are remembered; of more the oldest are looked for by a walk."""
MOST_FOUND = 100_000
"""Groups that a walk finds: more than that a machine does not have at once."""


class Groups:
    """`root` is where the hierarchy of version 2 is mounted; without one nothing is known of any group."""

    def __init__(self, root: str = ROOT) -> None:
        self._root = root
        self.known = os.path.exists(f"{root}/cgroup.controllers")
        """Whether there are groups of version 2, and nothing but these."""
        self._found: dict[int, bytes] = {}
        self.told: dict[int, bytes] = {}
        """What the kernel told of, the newest last."""
        self.walk()

    def restore(self, told: Mapping[int, bytes]) -> None:
        """What another process was told."""
        self.told = {**told, **self.told} if self.known else {}

    def add(self, made: Iterable[ControlGroup]) -> None:
        if self.known:
            self.told.update(made)
        if len(self.told) > MOST_TOLD:
            self.walk()
            gone = {number: path for number, path in self.told.items() if number not in self._found}
            self.told = dict(list(gone.items())[-MOST_TOLD // 2 :])

    def walk(self) -> None:
        """Find what there is now."""
        self._found = {}
        folders = [os.fsencode(self._root)] if self.known else []
        while folders and len(self._found) < MOST_FOUND:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    inner = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
            except OSError:  # gone meanwhile
                continue
            for entry in inner:
                self._found[entry.inode()] = entry.path[len(self._root) :]
                folders.append(entry.path)

    def find_path(self, number: int) -> bytes | None:
        return self.told.get(number) or self._found.get(number)
