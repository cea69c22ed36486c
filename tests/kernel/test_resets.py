"""Resets of closed ports: pages written by hand, and instances of the running kernel."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.clock import boot_ns
from tcpwatchd.connection import MAPPED, Drain, End, Endpoint, Reset
from tcpwatchd.kernel import instance
from tcpwatchd.kernel.instance import (
    RESETS,
    TRACING,
    TraceError,
    list_cpus,
    open_to_all,
    read_file,
    write_file,
)
from tcpwatchd.kernel.pages import PageLayout, read_page_layout
from tcpwatchd.kernel.resets import (
    ResetLayout,
    Resets,
    decode_page,
    decode_resets,
    read_reset_layout,
    tells_closed_ports,
)
from tcpwatchd.kernel.setup import (
    RESETS_KB,
    RESETS_TOTAL_KB,
    make,
    remove_resets,
    remove_stale,
    set_up_resets,
)
from tests.daemon import PROJECT
from tests.model import pack
from tests.namespace import Namespace, run
from tests.ring import (
    COUNTED,
    FIXTURE,
    MISSED,
    RESET_EVENT,
    SIZE,
    make_instance,
    make_settings,
    pack_reset,
    page,
    record,
    word,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

little_endian = pytest.mark.skipif(
    sys.byteorder != "little", reason="the layout is that of a little-endian kernel"
)
FORMAT = (FIXTURE / RESETS / "format").read_text()
HOST, SCANNER = pack(("10.0.0.5", 23)), pack(("192.0.2.7", 40000))
HOST6, SCANNER6 = pack(("2001:db8::5", 65535)), pack(("2001:db8:1::7", 1))
OLD_FORMAT = re.sub(r"\tfield:(enum sk_rst_reason|__u8).*\n", "", FORMAT).replace(
    "print fmt",
    """	field:__u16 sport;	offset:28;	size:2;	signed:0;
	field:__u8 saddr[4];	offset:34;	size:4;	signed:0;
	field:__u8 daddr[4];	offset:38;	size:4;	signed:0;

print fmt""",
)
"""As before Linux 6.10."""
LAYOUT = ResetLayout(RESET_EVENT, 32, 60)


def read_pages() -> PageLayout:
    page, entry = ((FIXTURE / "events" / name).read_text() for name in ("header_page", "header_event"))
    return read_page_layout(page, entry)


@pytest.fixture(scope="module")
def pages() -> PageLayout:
    return read_pages()


def decode(pages: PageLayout, *entries: bytes) -> list[Reset]:
    return decode_page(page(1000, *entries), pages, LAYOUT)


def test_the_layout_is_the_formats() -> None:
    assert read_reset_layout(FORMAT) == LAYOUT
    moved = FORMAT.replace("offset:32;", "offset:40;").replace("offset:60;", "offset:68;")
    assert read_reset_layout(moved.replace("ID: 2280", "ID: 7")) == (7, 40, 68)
    assert tells_closed_ports(FORMAT)


@pytest.mark.parametrize(
    "text",
    [
        OLD_FORMAT,
        FORMAT.replace(" reason;", " other;"),
        FORMAT.replace(" skaddr;", " other;"),
        FORMAT.replace(" saddr[28];", " other[28];"),
        "",
    ],
)
def test_a_kernel_that_does_not_tell_of_closed_ports(text: str) -> None:
    assert text != FORMAT
    assert not tells_closed_ports(text)
    with pytest.raises(ValueError, match="unknown layout"):
        read_reset_layout(text)


@pytest.mark.parametrize("name", ["saddr", "daddr"])
def test_addresses_of_another_size_are_refused(name: str) -> None:
    """What they are is not known then."""
    text = re.sub(rf"( {name}\[28\];.*)size:28;", r"\1size:16;", FORMAT)
    assert text != FORMAT
    assert tells_closed_ports(text)
    with pytest.raises(ValueError, match="unknown layout"):
        read_reset_layout(text)


def test_a_format_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown layout"):
        read_reset_layout(FORMAT.replace("ID:", "X:"))


@little_endian
@pytest.mark.parametrize(
    ("local", "remote"), [(HOST, SCANNER), (HOST6, SCANNER6), (HOST6, SCANNER), (HOST, SCANNER6)]
)
def test_a_record(pages: PageLayout, local: Endpoint, remote: Endpoint) -> None:
    assert decode(pages, pack_reset(local, remote, 5)) == [Reset(1005, End(local, remote))]


@little_endian
def test_ipv4_in_ipv6_is_ipv4(pages: PageLayout) -> None:
    local, remote = (Endpoint(MAPPED + end) for end in (HOST, SCANNER))
    assert decode(pages, pack_reset(local, remote)) == [Reset(1001, End(HOST, SCANNER))]


@little_endian
def test_records_of_other_events_and_what_is_none_are_passed_over(pages: PageLayout) -> None:
    entries = record(9, 1), pack_reset(HOST, SCANNER, 2), word(29, 1) + struct.pack("<I", 8) + bytes(4)
    other = pack_reset(HOST, SCANNER, 1, event=RESET_EVENT + 1)
    extend = word(30, 7) + struct.pack("<I", 3)
    found = decode(pages, *entries, other, extend, pack_reset(HOST6, SCANNER6, 1), word(29, 0), b"\xff" * 60)
    assert found == [
        Reset(1003, End(HOST, SCANNER)),
        Reset(1003 + 1 + 1 + (3 << 27) + 7 + 1, End(HOST6, SCANNER6)),
    ]


def drain(*raw: bytes, lost: int = 0) -> Drain:
    return Drain(2**62, [*raw], lost, {})


@little_endian
def test_cpus_are_merged_by_time(pages: PageLayout) -> None:
    first = page(1000, pack_reset(HOST, SCANNER, 1), pack_reset(HOST6, SCANNER6, 8))
    second = page(1004, pack_reset(HOST6, SCANNER6, 0))
    found, lost = decode_resets(drain(first, second, lost=3), pages, LAYOUT)
    assert ([time for time, _ in found], lost) == ([1001, 1004, 1009], 3)


@little_endian
@pytest.mark.parametrize(
    "damaged",
    [
        page(1, pack_reset(HOST, SCANNER, family=3)),
        page(1, pack_reset(HOST, SCANNER), pack_reset(HOST, SCANNER)[:-26]),
        page(1, pack_reset(HOST6, SCANNER6), word(0, 1))[:-1],
        b"\xff" * 10,
        b"",
    ],
)
def test_damage_is_counted_and_loses_its_own_page_only(pages: PageLayout, damaged: bytes) -> None:
    good = page(1000, pack_reset(HOST, SCANNER))
    found, lost = decode_resets(drain(good, damaged, good, lost=2), pages, LAYOUT)
    assert (found, lost) == ([Reset(1001, End(HOST, SCANNER))] * 2, 3)


@little_endian
@given(st.binary(max_size=300), st.integers(0, 300))
def test_whatever_a_page_holds_it_is_decoded_or_counted(noise: bytes, at: int) -> None:
    good = page(1000, *[pack_reset(HOST, SCANNER)] * 20)
    for raw in (noise, good[:at] + noise + good[at + len(noise) :], good[:at]):
        found, lost = decode_resets(drain(raw), read_pages(), LAYOUT)
        assert (len(found) <= SIZE // 4, lost) in ((True, 0), (found == [], 1))


# Instances made of files.


@little_endian
def test_what_is_read_and_what_was_overwritten(tmp_path: Path) -> None:
    first = page(1000, pack_reset(HOST, SCANNER)) + page(
        2000, pack_reset(HOST6, SCANNER6), flags=MISSED | COUNTED, lost=41
    )
    second = page(500, pack_reset(HOST, SCANNER6))
    resets = Resets(make_instance(tmp_path, first, second, event=RESETS))
    assert resets.read() == (
        [
            Reset(501, End(HOST, SCANNER6)),
            Reset(1001, End(HOST, SCANNER)),
            Reset(2001, End(HOST6, SCANNER6)),
        ],
        41,
        None,
    )
    assert resets.read() == ([], 0, None)
    resets.close()


@little_endian
def test_a_cpu_that_cannot_be_read_is_told_and_stops_no_other(tmp_path: Path) -> None:
    one = page(1000, pack_reset(HOST, SCANNER))
    resets = Resets(make_instance(tmp_path, one, one, event=RESETS))
    statistics = tmp_path / "per_cpu/cpu0/stats"
    good = statistics.read_text()
    statistics.write_text("nothing that is known\n")
    found, lost, failure = resets.read()
    assert (len(found), lost, isinstance(failure, ValueError)) == (1, 0, True)
    statistics.write_text(good)
    assert resets.read() == (found, 0, None)
    resets.close()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tracing_on", "0"),
        (f"{RESETS}/filter", "none"),
        (f"{RESETS}/enable", "0"),
        (f"{RESETS}/format", OLD_FORMAT),
    ],
)
def test_an_instance_that_is_not_as_it_should_be_is_refused(tmp_path: Path, file: str, text: str) -> None:
    path = make_instance(tmp_path, b"", event=RESETS)
    (tmp_path / file).write_text(f"{text}\n")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TraceError, match=re.escape(path)):
        Resets(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_changed_is_repaired_or_told(tmp_path: Path) -> None:
    path = make_instance(tmp_path, b"", event=RESETS)
    resets = Resets(path)
    resets.check()
    (tmp_path / RESETS / "filter").write_text("none\n")
    (tmp_path / "tracing_on").write_text("0\n")
    with pytest.raises(TraceError, match=r"filter|tracing_on"):
        resets.check()
    resets.check()
    assert [read_file(path, file) for file in ("tracing_on", f"{RESETS}/filter")] == ["1", "skaddr==0"]
    (tmp_path / "trace_clock").unlink()
    (tmp_path / "trace_clock").mkdir()
    with pytest.raises(OSError, match="trace_clock"):
        resets.check()
    (tmp_path / "trace_clock").rmdir()
    (tmp_path / "trace_clock").write_text("local [boot]\n")
    (tmp_path / "buffer_size_kb").write_text("64\n")
    with pytest.raises(TraceError, match="another size"):
        resets.check()
    resets.check()
    assert read_file(path, "buffer_size_kb") == "512"
    header = tmp_path / "events/header_page"
    header.write_text(header.read_text().replace("4080", "8176"))
    with pytest.raises(TraceError, match="another layout"):
        resets.check()
    resets.close()


def test_it_wakes_nobody(tmp_path: Path) -> None:
    """Whoever floods this machine with packets decides how many resets there are."""
    resets = Resets(make_instance(tmp_path, page(1000, pack_reset(HOST, SCANNER)), event=RESETS))
    resets.read()
    assert not any(cpu.awaited for cpu in resets._cpus.values())
    resets.close()


# Instances of the running kernel's tracefs.

NAME = "tcpwatchd-tests"
READ_AS_NOBODY = """
import sys
from tcpwatchd.kernel.resets import Resets
resets = Resets(sys.argv[1])
resets.check()
found, lost, failure = resets.read()
assert not failure, failure
print(*[end.local.port for _, end in found])
open(sys.argv[1] + "/trace")
"""


def traced(test: Callable[..., None]) -> Callable[..., None]:
    """Needs this machine's trace, alone."""
    for mark in (pytest.mark.trace, pytest.mark.alone):
        test = mark(test)
    return test


@pytest.fixture
def path() -> Iterator[str]:
    if not tells_closed_ports(read_file(TRACING, f"{RESETS}/format")):
        pytest.skip("this kernel does not tell of closed ports")
    yield set_up_resets(NAME)
    remove_resets(NAME)


@pytest.fixture
def closed() -> Iterator[Endpoint]:
    """Taken by a socket that does not listen, so that nobody else does."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield pack(taken.getsockname())


def knock(place: Endpoint) -> Endpoint:
    """Who tried."""
    with socket.socket(socket.AF_INET if place.is_ipv4 else socket.AF_INET6) as client:
        client.bind(("127.0.0.1" if place.is_ipv4 else "::1", 0))
        assert client.connect_ex((place.ip, place.port)) == errno.ECONNREFUSED
        return pack(client.getsockname()[:2])


def read_all(path: str) -> list[Reset]:
    resets = Resets(path)
    found, lost, failure = resets.read()
    resets.close()
    assert (lost, failure) == (0, None)
    return found


def list_stats(path: str) -> list[dict[str, str]]:
    """Of each CPU."""
    texts = [read_file(str(cpu), "stats") for cpu in Path(path, "per_cpu").iterdir()]
    return [dict(line.split(": ") for line in text.splitlines()) for text in texts]


@traced
def test_who_tried_which_closed_port(path: str, closed: Endpoint) -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        places = [closed, pack(taken.getsockname()[:2]), closed]
        began = boot_ns()
        ends = [End(place, knock(place)) for place in places]
        found = [reset for reset in read_all(path) if reset.end in ends]
    assert [end for _, end in found] == ends
    times = [time for time, _ in found]
    assert began < times[0] < times[1] < times[2] < boot_ns()


@traced
def test_what_a_socket_resets_is_no_closed_port(path: str, closed: Endpoint) -> None:
    """As one that is closed with bytes unread, and one that lingers for no time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(3):
            with socket.create_connection(server.getsockname()) as client:
                accepted = server.accept()[0]
                client.send(b"unread")
                accepted.close()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        knock(closed)
        ports = {reset.end.local.port for reset in read_all(path)}
        assert closed.port in ports
        assert server.getsockname()[1] not in ports


@traced
def test_closed_ports_of_other_networks_are_told_too(path: str) -> None:
    """As those of containers."""
    code = "import socket; print(socket.socket().connect_ex(('10.77.0.1', 9)))"
    with Namespace() as host:
        run(*host.prefix, "ip", "address", "add", "10.77.0.1/32", "dev", "lo")
        assert run(*host.prefix, sys.executable, "-c", code).stdout == f"{errno.ECONNREFUSED}\n"
    places = [reset.end.local for reset in read_all(path)]
    assert places.count(pack(("10.77.0.1", 9))) == 1


@traced
def test_the_instance_has_a_bound_and_one_reader(path: str) -> None:
    sizes = [int(read_file(path, f"per_cpu/cpu{number}/buffer_size_kb")) for number in list_cpus(path)]
    assert max(sizes) <= RESETS_KB + 8
    assert sum(sizes) <= RESETS_TOTAL_KB + 8 * len(sizes)
    resets = Resets(path)
    for intrude in (lambda: Resets(path), lambda: set_up_resets(NAME)):
        with pytest.raises(TraceError, match="another process"):
            intrude()
    resets.close()


@traced
def test_a_second_set_up_empties_nothing(path: str, closed: Endpoint) -> None:
    knock(closed)
    assert set_up_resets(NAME) == path
    open_to_all(path, RESETS)
    assert closed in [reset.end.local for reset in read_all(path)]


@traced
def test_what_was_lost_is_counted_exactly(path: str, closed: Endpoint) -> None:
    small = f"{path}-small"
    make(small, RESETS, default_kb=16, total_kb=4096)
    try:
        resets = Resets(small)
        for _ in range(1500):
            knock(closed)
        found, lost, failure = resets.read()
        kinds = "entries", "overrun", "read events"
        left, overwritten, taken = (sum(int(one[kind]) for one in list_stats(small)) for kind in kinds)
        assert (failure, left, taken) == (None, 0, len(found))
        assert lost == overwritten > 0
        assert lost + len(found) >= 1500
        knock(closed)
        found, lost, _ = resets.read()
        assert ([reset.end.local for reset in found].count(closed), lost) == (1, 0)
        resets.close()
    finally:
        os.rmdir(small)


@traced
@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("tracing_on", "0"),
        ("trace_clock", "local"),
        ("buffer_size_kb", "64"),
        (f"{RESETS}/enable", "0"),
        (f"{RESETS}/filter", "skaddr!=0"),
        (f"{RESETS}/filter", "0"),
    ],
)
def test_an_instance_that_somebody_changed_is_repaired(
    path: str, closed: Endpoint, file: str, value: str
) -> None:
    resets = Resets(path)
    right = read_file(path, file)
    write_file(path, file, value)
    assert read_file(path, file) != right
    with pytest.raises(TraceError, match=re.escape(path)):
        resets.check()
    assert read_file(path, file) == right
    knock(closed)
    assert closed in [reset.end.local for reset in resets.read()[0]]
    resets.close()


@traced
def test_the_service_reads_it_without_privilege_and_nothing_else(path: str, closed: Endpoint) -> None:
    open_to_all(path, RESETS)
    knock(closed)
    become = 'mount --bind "$0" /mnt && exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"'
    command = ["unshare", "--mount", "sh", "-c", become, path, sys.executable, "-c", READ_AS_NOBODY, "/mnt"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stderr.endswith("PermissionError: [Errno 13] Permission denied: '/mnt/trace'\n")
    assert str(closed.port) in done.stdout.split()


@traced
def test_it_goes_when_it_is_not_wanted(path: str) -> None:
    resets = Resets(path)
    with pytest.raises(OSError, match="busy"):
        remove_resets(NAME)
    resets.close()
    for _ in range(2):
        remove_resets(NAME)
        assert not os.path.exists(path)
    with pytest.raises(TraceError, match="does not exist"):
        Resets(path)


@traced
def test_it_goes_when_its_process_is_gone(path: str) -> None:
    pid = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    stale, living = (set_up_resets(f"tcpwatchd-{number}") for number in (pid, os.getpid()))
    remove_stale()
    assert [os.path.exists(one) for one in (stale, living, path)] == [False, True, True]
    remove_resets(f"tcpwatchd-{os.getpid()}")


def test_a_kernel_without_the_reason_gets_no_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_settings(tmp_path, event=RESETS)
    (tmp_path / RESETS / "format").write_text(OLD_FORMAT)
    (tmp_path / "instances").mkdir()
    monkeypatch.setattr(instance, "TRACING", str(tmp_path))
    with pytest.raises(TraceError, match="does not tell of closed ports"):
        set_up_resets(NAME)
    assert os.listdir(tmp_path / "instances") == []
