"""A short run of each fuzzer; `make soak` runs them long."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.namespace import run

pytest.importorskip("atheris", reason="atheris has no build for this Python")
FUZZER = Path(__file__).with_name("fuzz.py")
RUNS = int(os.environ.get("FUZZ_RUNS", "10000"))


@pytest.mark.parametrize(
    "target", ["table", "page", "resets", "baseline", "log", "types", "config", "expression"]
)
def test_fuzz(target: str, tmp_path: Path) -> None:
    flags = [f"-runs={RUNS}", "-max_len=4096", "-seed=1"]
    place = {"cwd": tmp_path, "env": {**os.environ, "TMPDIR": str(tmp_path)}}
    done = run(sys.executable, FUZZER, target, *flags, **place)
    assert f"Done {RUNS} runs" in done.stderr
