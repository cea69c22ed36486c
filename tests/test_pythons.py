"""The unit and property tests under each Python that is supported, as far as it is installed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.namespace import run

PROJECT = Path(__file__).parents[1]
CACHE = Path(tempfile.gettempdir()) / "tcpwatchd-pythons"
MINORS = range(9, 14)
TESTS = (
    "test_clock.py", "test_connection.py", "test_costs.py", "test_law.py",
    "config/test_values.py", "config/test_flags.py", "policy",
    "kernel/test_counters.py", "kernel/test_pages.py",
    "kernel/test_tables.py", "tracking", "output", "state", "service",
)  # fmt: skip
NEEDED = ("pytest", "hypothesis", "sdnotify")


def find_python(minor: int) -> Path | None:
    """In pyenv, whose commands in PATH work for its chosen versions only, or in PATH."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(versions.glob(f"3.{minor}.*/bin/python3.{minor}"))
    elsewhere = shutil.which(f"python3.{minor}")
    return found[-1] if found else Path(elsewhere) if elsewhere else None


def make_environment(python: Path, minor: int) -> Path:
    """Made once, and kept."""
    environment = CACHE / f"3.{minor}"
    if not environment.exists():
        CACHE.mkdir(exist_ok=True)
        partial = tempfile.mkdtemp(dir=CACHE)
        run(python, "-m", "venv", partial)
        run(f"{partial}/bin/python", "-m", "pip", "install", "--quiet", *NEEDED)
        Path(partial).rename(environment)
    return environment / "bin" / "python"


@pytest.mark.pythons
@pytest.mark.parametrize("minor", MINORS)
def test_under(minor: int) -> None:
    python = find_python(minor)
    if python is None:
        pytest.skip(f"Python 3.{minor} is not installed")
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not (root or container)"]
    command += [f"tests/{name}" for name in TESTS]
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "brief"}
    said = run(make_environment(python, minor), *command, cwd=PROJECT, env=environment).stdout
    assert " passed" in said
    assert "skipped" not in said
