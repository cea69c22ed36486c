"""Settings of the property tests, what a test needs, and which tests can run side by side."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

from tests.namespace import TRACING, mount_tracefs

settings.register_profile(
    "short", max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("brief", parent=settings.get_profile("short"), max_examples=50)
settings.register_profile("long", parent=settings.get_profile("short"), max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

TOOLS = {
    "container": ("systemd-nspawn", "debootstrap"),
    "machine": ("qemu-system-x86_64", "debootstrap"),
}

# Of the make that runs the tests: a make that a test runs would say that it is another's child.
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def _tracefs() -> None:
    mount_tracefs()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share what they set up, so one worker runs them; virtual machines share nothing.

    Of the services that see this machine's trace only one can run at a time: their instance has one name.
    """
    for item in items:
        if item.get_closest_marker("xdist_group"):
            continue
        group = item.nodeid.partition("::")[0]
        if item.get_closest_marker("machine"):
            group = item.nodeid
        elif item.get_closest_marker("trace"):
            group = "trace"
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_runtest_setup(item: pytest.Item) -> None:
    needed = [name for name in ("root", "trace", *TOOLS) if item.get_closest_marker(name)]
    if needed and os.geteuid() != 0:
        pytest.skip("needs root")
    if "trace" in needed and not TRACING.is_dir():
        pytest.skip("needs a kernel with tracefs")
    missing = [tool for name in needed for tool in TOOLS.get(name, ()) if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
