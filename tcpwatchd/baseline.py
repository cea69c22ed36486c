"""What is kept over a restart, in the service's runtime directory: until when which instance was drained."""

from __future__ import annotations

import os
from typing import NamedTuple


class Drained(NamedTuple):
    """An instance of tracefs, named by its inode, and when it was last read: microseconds since the epoch."""

    instance: int
    until: int


class Baseline:
    """One small file. Without a directory nothing is kept."""

    def __init__(self, directory: str | None) -> None:
        self._path = os.path.join(directory, "drained") if directory else None

    def find(self) -> Drained | None:
        """What was kept last; None at a first start. Raises ValueError for a file that is not ours."""
        try:
            with open(self._path or "") as file:
                instance, until = file.read(100).split()
        except FileNotFoundError:
            return None
        return Drained(int(instance), int(until))

    def write(self, drained: Drained) -> None:
        """Replaces the file in one step. Raises OSError."""
        if self._path:
            with open(f"{self._path}.new", "w") as file:
                file.write(f"{drained.instance} {drained.until}\n")
            os.replace(f"{self._path}.new", self._path)
