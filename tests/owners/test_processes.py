"""What /proc shows of real processes, and for which moments it holds."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.clock import boot_ns
from tcpwatchd.owners.processes import (
    LONGEST_COMMAND_LINE,
    MOST_LOOKS,
    TICK,
    Processes,
    parse_group,
    parse_start,
    parse_status,
    read_network,
)
from tests.owners.children import NAMED, end_one, needs_initial_pids, start

pytestmark = needs_initial_pids
NOBODYS = 5_000_000
"""More than the highest number that a thread can have (PID_MAX_LIMIT), and so those that follow."""
NOBODY = 65534
KTHREADD = 2


def test_this_process() -> None:
    process = Processes().look(os.getpid(), boot_ns())
    assert process
    assert process.number == os.getpid()
    assert process.name + b"\n" == Path(f"/proc/self/task/{os.getpid()}/comm").read_bytes()
    assert process.user == os.geteuid()
    assert process.executable == os.fsencode(os.readlink("/proc/self/exe"))
    assert process.command_line is None, "it can hold secrets, and was not asked for"
    lines = Path("/proc/self/cgroup").read_bytes().splitlines()
    assert process.group == next((line[3:] for line in lines if line.startswith(b"0::")), None)


def test_a_thread_belongs_to_its_process() -> None:
    numbers: list[int] = []
    told, over = threading.Event(), threading.Event()

    def run() -> None:
        Path("/proc/thread-self/comm").write_bytes(b"worker")
        numbers.append(threading.get_native_id())
        told.set()
        over.wait()

    thread = threading.Thread(target=run)
    thread.start()
    told.wait()
    process = Processes().look(numbers[0], boot_ns())
    over.set()
    thread.join()
    assert process
    assert (process.number, process.name) == (os.getpid(), b"worker")
    assert numbers[0] != os.getpid()


@pytest.mark.parametrize(
    "name",
    [
        b"curl",
        b"x\n1 sshd",
        b"a\\b",
        b"a\\nb",
        b"\\\n\\\\n",
        b"\\\\",
        b"\xff\xfe\x80",
        b"\x1b[31mred",
        b"a) S 1 (b",
        b"tab\tcr\r",
        b"x\nUid:\t0\t0\t0",
        b"fifteen bytes..",
    ],
)
def test_hostile_names(name: bytes) -> None:
    with start(NAMED, name.hex()) as number:
        process = Processes().look(number, boot_ns())
    assert process
    assert (process.name, process.number, process.user) == (name, number, os.geteuid())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a process of another user")
def test_the_user_is_that_of_access_to_files() -> None:
    """As a socket that the process makes has it."""
    with start("import os; os.setresuid(0, 65534, 0)") as number:
        process = Processes().look(number, boot_ns())
    assert process
    assert process.user == NOBODY


def test_a_process_that_has_ended_is_nobody() -> None:
    assert Processes().look(end_one(), boot_ns()) is None


def test_what_was_seen_holds_for_a_drain() -> None:
    """For the time until it was looked at, and not for what has the number after that."""
    processes = Processes()
    processes.start_drain()
    with start() as number:
        when = boot_ns()
        seen = processes.look(number, when)
    assert seen
    assert processes.look(number, when) == seen
    assert processes.look(number, boot_ns()) is None
    assert processes.look(number, when) == seen
    processes.start_drain()
    assert processes.look(number, when) is None


def test_a_record_that_is_older_than_the_process_is_anothers() -> None:
    before = boot_ns()
    time.sleep(3 * TICK / 1e9)
    with start() as number:
        processes = Processes()
        assert processes.look(number, before) is None
        found = processes.look(number, boot_ns())
        assert processes.look(number, before) is None
    assert found
    assert before < found.started <= found.seen


def test_a_record_that_is_newer_than_the_look_is_looked_for_again() -> None:
    processes = Processes()
    first = processes.look(os.getpid(), boot_ns())
    later = boot_ns()
    again = processes.look(os.getpid(), later)
    assert first
    assert again
    assert first.seen < later <= again.seen


def test_looks_are_bounded_for_each_drain() -> None:
    processes = Processes()
    processes.start_drain()
    for number in range(MOST_LOOKS):
        assert processes.look(NOBODYS + number, boot_ns()) is None
    assert processes.look(os.getpid(), boot_ns()) is None
    processes.start_drain()
    assert processes.look(os.getpid(), boot_ns())


def test_one_that_was_looked_for_in_vain_costs_one_look() -> None:
    processes = Processes()
    for _ in range(MOST_LOOKS):
        assert processes.look(NOBODYS, boot_ns()) is None
    assert processes.look(os.getpid(), boot_ns())


def test_one_that_was_seen_costs_one_look() -> None:
    processes = Processes()
    with start() as number:
        when = boot_ns()
        assert all(processes.look(number, when) for _ in range(10 * MOST_LOOKS))
        assert processes.look(os.getpid(), boot_ns())


def test_what_two_looks_found_alike_held_between_them() -> None:
    processes = Processes()
    with start() as number:
        first = processes.look(number, boot_ns())
        processes.start_drain()
        second = processes.look(number, boot_ns())
    assert first
    assert second
    assert first.steady == first.seen == second.steady < second.seen


@pytest.mark.root
def test_whoever_became_another_user_between_two_looks_may_have_been_either() -> None:
    program = f"import os; input(); os.setresuid({NOBODY}, {NOBODY}, {NOBODY}); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin
        assert child.stdout
        processes = Processes()
        assert processes.look(child.pid, boot_ns())
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        processes.start_drain()
        now_nobody = processes.look(child.pid, boot_ns())
        child.kill()
    assert now_nobody
    assert now_nobody.user == NOBODY
    assert now_nobody.steady == now_nobody.seen


def test_command_lines() -> None:
    processes = Processes(command_lines=True)
    with start("", "secret", "two words", "") as number:
        process = processes.look(number, boot_ns())
    assert process
    assert process.command_line
    assert process.command_line.endswith(b"\0secret\0two words\0\0")


def test_a_long_command_line_is_cut() -> None:
    with start("", "x" * 10_000) as number:
        process = Processes(command_lines=True).look(number, boot_ns())
    assert process
    assert process.command_line
    assert len(process.command_line) == LONGEST_COMMAND_LINE


@pytest.mark.parametrize("thread", [0, -1, NOBODYS])
def test_what_no_thread_has(thread: int) -> None:
    assert Processes().look(thread, boot_ns()) is None


@pytest.mark.skipif(
    not Path(f"/proc/{KTHREADD}/comm").exists() or Path(f"/proc/{KTHREADD}/comm").read_text() != "kthreadd\n",
    reason="needs a thread of the kernel that may be seen",
)
def test_a_thread_of_the_kernel() -> None:
    """As of NFS: it has neither an executable nor a command line."""
    process = Processes(command_lines=True).look(KTHREADD, boot_ns())
    assert process
    assert (process.name, process.user) == (b"kthreadd", 0)
    assert not process.executable
    assert not process.command_line


@pytest.mark.parametrize("namespace", ["pid:[4026532999]", None])
def test_outside_the_initial_namespace_numbers_mean_nothing(tmp_path: Path, namespace: str | None) -> None:
    """The kernel's records have those of the initial one. With a whole /proc behind it."""
    (tmp_path / "self" / "ns").mkdir(parents=True)
    if namespace:
        (tmp_path / "self" / "ns" / "pid").symlink_to(namespace)
    (tmp_path / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    processes = Processes(proc=str(tmp_path))
    assert not processes.known
    assert processes.look(os.getpid(), boot_ns()) is None


def test_files_that_make_no_sense(tmp_path: Path) -> None:
    (tmp_path / "self" / "ns").mkdir(parents=True)
    (tmp_path / "self" / "ns" / "pid").symlink_to(os.readlink("/proc/self/ns/pid"))
    for number, text in enumerate((b"", b"\xff" * 10_000, b"Name:\tx\nTgid:\tone\n"), 1):
        (tmp_path / str(number)).mkdir()
        for name in ("stat", "status", "cgroup"):
            (tmp_path / str(number) / name).write_bytes(text)
    processes = Processes(proc=str(tmp_path))
    assert [processes.look(number, boot_ns()) for number in (1, 2, 3)] == [None] * 3


def test_the_network_namespace_of_this_process() -> None:
    assert f"net:[{read_network()}]" == os.readlink("/proc/self/ns/net")


def test_the_start_of_a_process_whose_name_looks_like_fields() -> None:
    fields = b" ".join(b"%d" % number for number in range(4, 53))
    plain, hostile = b"1 (sh) S " + fields, b"1 (a) S 0 0 (b) R) S " + fields
    assert parse_start(plain) == parse_start(hostile)


@pytest.mark.parametrize(
    ("text", "group"),
    [
        (b"0::/system.slice/ssh.service\n", b"/system.slice/ssh.service"),
        (b"12:pids:/a\n1:name=systemd:/b\n0::/c\n", b"/c"),
        (b"0::/\n", b"/"),
        (b"0::/../outside\n", b"/../outside"),
        (b"12:pids:/a\n1:name=systemd:/b\n", None),
        (b"10::/a\n", None),
        (b"", None),
    ],
)
def test_the_group_of_version_2(text: bytes, group: bytes | None) -> None:
    assert parse_group(text) == group


@given(st.binary(max_size=200))
def test_random_bytes_end_in_a_stated_error(text: bytes) -> None:
    whole = b"Name:\t" + text + b"\nTgid:\t5\nUid:\t1\t2\t3\t4\n"
    for parse, some in (
        (parse_start, text),
        (parse_status, text),
        (parse_status, whole),
        (parse_group, text),
    ):
        try:
            parse(some)
        except ValueError:
            continue
