"""Settings of the property tests, what a test needs, and which tests can run side by side."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from typing import IO, TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.namespace import TRACING, mount_tracefs
from tests.table import show, write_counters

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The same histories each time, to judge a change by; the long form looks for new ones.
settings.register_profile(
    "short",
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
settings.register_profile("brief", parent=settings.get_profile("short"), max_examples=50)
settings.register_profile("long", parent=settings.get_profile("short"), max_examples=5_000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

TOOLS = {
    "container": ("systemd-nspawn", "debootstrap"),
    "machine": ("qemu-system-x86_64", "debootstrap"),
    "journals": ("/usr/lib/systemd/systemd-journal-remote", "chromium"),
}

# Of the make that runs the tests: a make that a test runs would say that it is another's child.
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(name, None)

# A shell that starts the tests in the background has them ignore SIGINT, and so would what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _tracefs() -> None:
    mount_tracefs()


def pytest_runtest_setup(item: pytest.Item) -> None:
    needed = [name for name in ("root", "trace", *TOOLS) if item.get_closest_marker(name)]
    if set(needed) - {"journals"} and os.geteuid() != 0:
        pytest.skip("needs root")
    if "trace" in needed and not TRACING.is_dir():
        pytest.skip("needs a kernel with tracefs")
    missing = [tool for name in needed for tool in TOOLS.get(name, ()) if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A directory to be /proc, with empty tables."""
    (tmp_path / "self" / "net").mkdir(parents=True)
    write_counters(tmp_path / "self" / "net")
    show(tmp_path)
    return tmp_path


@pytest.fixture
def output() -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        yield file
