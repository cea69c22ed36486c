"""From the path of a control group to the systemd unit and the container. No I/O.

A unit's control group has the unit's name, with "_" before it where the kernel keeps the name to itself
(Control Group Interface of systemd). Container managers have forms of their own. Below user@UID.service, and
below a unit that delegates its groups, names are the words of whoever runs there.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(service|scope|socket|mount|swap|slice)")
LONGEST_UNIT = 255
USER_MANAGER = re.compile(r"user@[0-9]+\.service")
HEXADECIMAL = "[0-9a-f]{64}"
CONTAINERS = [
    re.compile(form)
    for form in (
        # docker, podman, CRI-O, containerd and nerdctl, with systemd, and some of them without
        rf"(?:docker|libpod|libpod-payload|crio|cri-containerd|containerd|nerdctl)-({HEXADECIMAL})(?:\.scope)?",
        # docker and Kubernetes without
        rf"({HEXADECIMAL})",
        # containerd that names its groups as for systemd, without it
        rf"[A-Za-z0-9_.-]+:[A-Za-z0-9_.-]+:({HEXADECIMAL})",
        # systemd-nspawn, as a service and by machined
        r"systemd-nspawn@([A-Za-z0-9:_.\\-]+)\.service",
        r"machine-(?!qemu\\x2d)([A-Za-z0-9:_.\\-]+)\.scope",
        # LXC
        r"lxc\.payload\.([A-Za-z0-9_.-]+)",
    )
]
LXC = "lxc."
"""Begins the names of groups that newer LXC makes, which may end like those of units."""
OLD_LXC = "lxc"
"""The folder in which older LXC has a group for each container."""


class Place(NamedTuple):
    """What the path of a control group tells. What it does not tell is None."""

    unit: str | None
    user_unit: str | None
    container: str | None


NOWHERE = Place(None, None, None)


@lru_cache(maxsize=4096)
def find_place(path: bytes) -> Place:
    """`path` is from the root of the hierarchy."""
    names = [name.removeprefix("_") for name in path.decode("ascii", "replace").strip("/").split("/")]
    if names[0] == "..":  # outside of the hierarchy that is seen here
        return NOWHERE
    unit, rest = find_unit(names)
    user_unit = find_unit(rest)[0] if unit and USER_MANAGER.fullmatch(unit) else None
    return Place(unit, user_unit, find_container(names))


def find_unit(names: list[str]) -> tuple[str | None, list[str]]:
    """The first unit that is no slice, or the slice itself whose group this is, and what is below it."""
    for at, name in enumerate(names):
        if not UNIT.fullmatch(name) or len(name) > LONGEST_UNIT or name.startswith(LXC):
            return None, []
        if not name.endswith(".slice") or at == len(names) - 1:
            return name, names[at + 1 :]
    return None, []


def find_container(names: list[str]) -> str | None:
    """The outermost."""
    for above, name in zip(["", *names], names):
        for form in CONTAINERS:
            found = form.fullmatch(name)
            if found:
                return unescape(found[1])
        if above == OLD_LXC:
            return name if re.fullmatch("[A-Za-z0-9_.-]+", name) else None
    return None


def unescape(name: str) -> str:
    r"""As systemd-escape(1) does it: \x2d is a dash. What it stands for must be safe to print."""
    plain = re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), name)
    return plain if plain.isprintable() and plain.isascii() else name
