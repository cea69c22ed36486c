"""The paths of control groups by their numbers.

The kernel tells of each one that is made; those that are older are found by one walk. Sockets can outlive the
group that they were made in, so what the kernel told is kept, also when the group is gone. A number is never
given twice (kernfs_new_node in fs/kernfs/dir.c).
"""

from __future__ import annotations

import os
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tcpwatchd.connection import ControlGroup

ROOT = "/sys/fs/cgroup"
MOST_TOLD = 4096
"""Groups that the kernel told of and that are remembered: those that still are can be found again."""
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
        self._missing: set[int] = set()
        """What was asked for and not found; looked for once, by a walk."""
        self._walk_wanted = False
        self._walk()

    def restore(self, told: Mapping[int, bytes]) -> None:
        """What another process was told."""
        self.told = {**told, **self.told} if self.known else {}

    def add(self, made: Iterable[ControlGroup]) -> None:
        if self.known:
            self.told.update(made)
        if len(self.told) > MOST_TOLD:
            self._walk_wanted = True
            for number in list(self.told)[: len(self.told) - 2 * MOST_TOLD]:
                del self.told[number]

    def refresh(self) -> bool:
        """At each poll: walk, if something was not found or too much was told. Whether that was done."""
        if not self._walk_wanted:
            return False
        self._walk()
        if len(self.told) > MOST_TOLD:
            # Those that still are will be found by the next walk too.
            gone = [(number, path) for number, path in self.told.items() if number not in self._found]
            self.told = dict(gone[-MOST_TOLD // 2 :])
        return True

    def _walk(self) -> None:
        """Find what there is now; what is near the root first, and not all of what somebody made below."""
        self._walk_wanted = False
        self._found = {}
        folders = deque([os.fsencode(self._root)] if self.known else [])
        while folders and len(self._found) < MOST_FOUND:
            try:
                with os.scandir(folders.popleft()) as entries:
                    for entry in islice(entries, MOST_FOUND):
                        if entry.is_dir(follow_symlinks=False):
                            self._found[entry.inode()] = entry.path[len(self._root) :]
                            folders.append(entry.path)
            except OSError:  # gone meanwhile
                continue

    def find_path(self, number: int) -> bytes | None:
        path = self.told.get(number) or self._found.get(number)
        if path is None and number and number not in self._missing:
            if len(self._missing) >= MOST_TOLD:
                self._missing.clear()
            self._missing.add(number)
            self._walk_wanted = self.known
        return path
