"""Settings of the property tests: short by default, long in `make soak`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "short", max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("brief", parent=settings.get_profile("short"), max_examples=50)
settings.register_profile("long", parent=settings.get_profile("short"), max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

TRACING = Path("/sys/kernel/tracing")

# Of the make that runs the tests: a make that a test runs would say that it is another's child.
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def _tracefs() -> None:
    """Mounted, as systemd does it on a machine that it boots."""
    if os.geteuid() == 0 and TRACING.is_dir() and not (TRACING / "instances").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACING], check=False)
