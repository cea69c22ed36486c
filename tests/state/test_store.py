"""The runtime directory: replaced in one step, and gone on with after an end at any byte."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.connection import Drain, Formats, Written
from tcpwatchd.state.baseline import BaselineError
from tcpwatchd.state.store import MOST_LOG, Store
from tests.kept import make_baseline, make_full, spread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMATS = Formats("page", "entry", "record")
DRAINS = [Drain(1, [b"first page", b"second"], 0, {0: 2, 3: 1}), Drain(2, [b"third"], 7, {3: 2})]


def fill(folder: Path) -> Store:
    store = Store(str(folder))
    assert store.load() is None
    store.save(make_full(), FORMATS)
    store.append_drain(DRAINS[0])
    store.mark_written(Written(3, 3, 0))
    store.append_drain(DRAINS[1])
    store.mark_written(Written(6, 4, 7))
    return store


def test_the_next_process_has_all(tmp_path: Path) -> None:
    fill(tmp_path)
    kept = Store(str(tmp_path)).load()
    assert kept
    baseline, log = kept
    assert spread(baseline) == spread(make_full())
    assert (log.formats, log.drains, log.written, log.damage) == (FORMATS, DRAINS, Written(6, 4, 7), None)


def test_a_log_goes_on_in_the_next_process(tmp_path: Path) -> None:
    fill(tmp_path)
    second = Store(str(tmp_path))
    second.load()
    second.append_drain(DRAINS[0])
    kept = Store(str(tmp_path)).load()
    assert kept
    assert kept[1].drains == [*DRAINS, DRAINS[0]]


def test_a_new_baseline_begins_a_new_log(tmp_path: Path) -> None:
    store = fill(tmp_path)
    store.save(make_baseline(), None)
    kept = Store(str(tmp_path)).load()
    assert kept
    assert (kept[0].generation, kept[1].drains, kept[1].written) == (2, [], Written(0, 0, 0))
    assert sorted(os.listdir(tmp_path)) == ["baseline", "log.2"]


def test_a_log_that_ends_anywhere_gives_whole_frames(tmp_path: Path) -> None:
    fill(tmp_path)
    log = tmp_path / "log.1"
    text = log.read_bytes()
    for size in range(len(text)):
        log.write_bytes(text[:size])
        kept = Store(str(tmp_path)).load()
        assert kept
        assert kept[1].drains == DRAINS[: len(kept[1].drains)]
        assert kept[1].damage is None
        assert log.stat().st_size <= size, "what was cut short is cut off"
        log.write_bytes(text)


def test_damage_in_the_log_is_told_and_ends_it(tmp_path: Path) -> None:
    fill(tmp_path)
    log = tmp_path / "log.1"
    text = log.read_bytes()
    at = text.index(b"third")
    log.write_bytes(text[:at] + b"T" + text[at + 1 :])
    kept = Store(str(tmp_path)).load()
    assert kept
    assert kept[1].drains == DRAINS[:1]
    assert "damaged after" in str(kept[1].damage)


@pytest.mark.parametrize("spoil", ["baseline", "log.1"])
def test_what_cannot_be_read_is_told(tmp_path: Path, spoil: str) -> None:
    fill(tmp_path)
    (tmp_path / spoil).unlink()
    (tmp_path / spoil).mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        Store(str(tmp_path)).load()


def test_a_lost_log_makes_the_baseline_useless(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "log.1").unlink()
    with pytest.raises(FileNotFoundError):
        Store(str(tmp_path)).load()
    (tmp_path / "baseline").write_bytes(b"")
    with pytest.raises(BaselineError):
        Store(str(tmp_path)).load()


def test_without_a_directory_nothing_is_kept() -> None:
    store = Store(None)
    store.save(make_full(), FORMATS)
    store.append_drain(DRAINS[0])
    store.mark_written(Written(1, 1, 0))
    store.touch()
    assert store.load() is None


def test_after_a_failure_nothing_is_put_aside_until_the_next_baseline(tmp_path: Path) -> None:
    store = fill(tmp_path)
    with pytest.raises(OSError, match="too large"):
        store.append_drain(Drain(3, [bytes(MOST_LOG)], 0, {}))
    store.mark_written(Written(99, 99, 0))
    kept = Store(str(tmp_path)).load()
    assert kept
    assert kept[1].written == Written(6, 4, 7)
    store.save(make_full(), FORMATS)
    store.mark_written(Written(99, 99, 0))
    kept = Store(str(tmp_path)).load()
    assert kept
    assert kept[1].written == Written(99, 99, 0)


def test_a_failed_save_leaves_the_last_one(tmp_path: Path) -> None:
    store = fill(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            store.save(make_baseline(), FORMATS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    store.mark_written(Written(6, 5, 7))
    kept = Store(str(tmp_path)).load()
    assert kept
    assert (spread(kept[0]), kept[1].written) == (spread(make_full()), Written(6, 5, 7))


@contextlib.contextmanager
def limit_files(size: int) -> Iterator[None]:
    """As on a file system where no more than this has room; Python ignores the signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [5, 30], ids=["for no log", "for no baseline"])
def test_a_failed_save_leaves_nothing_open_and_nothing_behind(tmp_path: Path, room: int) -> None:
    """And it says which file it was."""
    store = fill(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with limit_files(room), pytest.raises(OSError, match="too large") as failure:
            store.save(make_baseline(), FORMATS)
        assert failure.value.filename == str(tmp_path / ("log.2" if room == 5 else "baseline.new"))
    assert len(os.listdir("/proc/self/fd")) == before
    assert sorted(os.listdir(tmp_path)) == ["baseline", "log.1"]
    store.save(make_baseline(), FORMATS)
    assert sorted(os.listdir(tmp_path)) == ["baseline", "log.2"]


def test_a_log_that_cannot_grow_says_which_it_is(tmp_path: Path) -> None:
    store = fill(tmp_path)
    with limit_files(1), pytest.raises(OSError, match="too large") as failure:
        store.append_drain(DRAINS[0])
    assert failure.value.filename == str(tmp_path / "log.1")


def test_what_cannot_be_cleaned_up_fails_no_save(tmp_path: Path) -> None:
    store = fill(tmp_path)
    (tmp_path / "log.of another").mkdir()
    store.save(make_baseline(), FORMATS)
    store.mark_written(Written(1, 1, 0))
    kept = Store(str(tmp_path)).load()
    assert kept
    assert (kept[0].generation, kept[1].written) == (2, Written(1, 1, 0))
    assert not (tmp_path / "log.1").exists(), "the others are removed"


METRICS = "metrics/tcpwatchd.prom"


def test_metrics_are_replaced_in_one_step_for_all_to_read(tmp_path: Path) -> None:
    """Whatever the mask, and though a process ended before it could say who may read them."""
    store = fill(tmp_path)
    mask = os.umask(0o077)
    try:
        store.write_metrics(b"x 1\n")
        with (tmp_path / METRICS).open("rb") as before:
            folder = (tmp_path / "metrics").stat()
            (tmp_path / "metrics").chmod(0o700)
            (tmp_path / f"{METRICS}.new").write_bytes(b"what a process left" * 100)
            store.write_metrics(b"y 2\n")
            assert before.read() == b"x 1\n"
    finally:
        os.umask(mask)
    assert (tmp_path / METRICS).read_bytes() == b"y 2\n"
    assert (tmp_path / "metrics").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / METRICS).stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "metrics").stat().st_ino == folder.st_ino, "others may have it bound"
    assert os.listdir(tmp_path / "metrics") == ["tcpwatchd.prom"]
    kept = Store(str(tmp_path)).load()
    assert kept
    assert spread(kept[0]) == spread(make_full())


def test_metrics_that_cannot_be_written_leave_the_last_ones_and_nothing_else(tmp_path: Path) -> None:
    store = fill(tmp_path)
    store.write_metrics(b"x 1\n")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with limit_files(5), pytest.raises(OSError, match="too large") as failure:
            store.write_metrics(b"y 2\n" * 100)
        assert failure.value.filename == str(tmp_path / f"{METRICS}.new")
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.listdir(tmp_path / "metrics") == ["tcpwatchd.prom"]
    assert (tmp_path / METRICS).read_bytes() == b"x 1\n"


@pytest.mark.parametrize("place", ["metrics", METRICS])
def test_what_is_in_the_way_of_metrics_is_named(tmp_path: Path, place: str) -> None:
    store = fill(tmp_path)
    if place == "metrics":
        (tmp_path / place).write_bytes(b"")
    else:
        (tmp_path / place).mkdir(parents=True)
    with pytest.raises(OSError, match="directory") as failure:
        store.write_metrics(b"x 1\n")
    assert failure.value.filename == str(tmp_path / (f"{METRICS}.new" if place == "metrics" else METRICS))
    assert not (tmp_path / f"{METRICS}.new").exists()


def test_without_a_directory_no_metrics_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Store(None).write_metrics(b"x 1\n")
    assert os.listdir(tmp_path) == []
