"""Packages, built from a copy of the source in a clean container without a network."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tcpwatchd import __version__
from tests.namespace import run
from tests.system.container import Layers, copy_source, make_tree

if TYPE_CHECKING:
    from pathlib import Path

TOOLS = (
    "build-essential,debhelper,dh-python,pybuild-plugin-pyproject,python3-all,python3-setuptools,"
    "lintian,rpmlint,mandoc,man-db"
)
"""What builds and checks packages, and the man page."""
STUBS = "/src/tests/system/fedora.macros"


class Workshop:
    """A Debian with the tools, and the source at /src and wherever else it is copied."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self._layers = Layers(make_tree(suite, TOOLS))
        self.root = self._layers.root
        self.copy_source("src")

    def copy_source(self, name: str) -> None:
        copy_source(self.root / name)

    def set_version(self, name: str, version: str) -> None:
        """Of the source at a place, everywhere it stands."""
        places = (
            "tcpwatchd/__init__.py",
            "packaging/debian/changelog",
            "packaging/tcpwatchd.spec",
            "CHANGELOG.md",
        )
        for place in places:
            path = self.root / name / place
            path.write_text(re.sub(rf"\b{re.escape(__version__)}\b", version, path.read_text()))

    def run(self, *command: str) -> str:
        inside = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network"]
        return run(*inside, "-D", self.root, *command).stdout

    def build_deb(self, name: str = "src") -> Path:
        self.run("make", "-C", f"/{name}", "deb")
        (package,) = (self.root / name / "dist").glob("*.deb")
        return package

    def build_rpm(self, name: str = "src") -> Path:
        """With macros that stand for Fedora's."""
        self.run("make", "-C", f"/{name}", "rpm", f"ARGS=--nodeps --load={STUBS}")
        (package,) = (self.root / name / "dist").glob("*.noarch.rpm")
        return package

    def remove(self) -> None:
        self._layers.remove()
