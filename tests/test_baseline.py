"""What is kept over a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tcpwatchd.baseline import Baseline, Drained

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_found_again(tmp_path: Path) -> None:
    assert Baseline(str(tmp_path)).find() is None
    for until in (1, 2**60):
        Baseline(str(tmp_path)).write(Drained(7, until))
        assert Baseline(str(tmp_path)).find() == Drained(7, until)
    assert [path.name for path in tmp_path.iterdir()] == ["drained"]


def test_without_a_directory_nothing_is_kept() -> None:
    Baseline(None).write(Drained(7, 1))
    assert Baseline(None).find() is None


@pytest.mark.parametrize("text", ["", "7", "7 8 9", "a b", "7 b"])
def test_a_foreign_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "drained").write_text(text)
    with pytest.raises(ValueError, match=r".+"):
        Baseline(str(tmp_path)).find()
