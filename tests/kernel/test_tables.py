"""The tables as text: real captures, other byte orders, shifted columns, damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcpwatchd.connection import End, Endpoint, Row, TcpState
from tcpwatchd.kernel.tables import BLOCK, MOST_ADDRESSES, TableError, Tables
from tests.polls import take
from tests.table import HEADER4, endpoint4, endpoint6, row, write_tables

FIXTURES = Path(__file__).parents[1] / "fixtures"


def shown(rows: list[Row]) -> list[str]:
    return [f"{row.end.local} {row.end.remote} {row.state.name} {row.inode}" for row in rows]


def line(number: int, local: str, remote: str, state: int = 1, inode: int = 7, uid: int = 0) -> str:
    (local_ip, local_port), (remote_ip, remote_port) = local.split(":"), remote.split(":")
    here, there = endpoint4(local_ip, int(local_port)), endpoint4(remote_ip, int(remote_port))
    return row(number, here, there, state, inode, uid)


def read_rows(root: Path, rows4: list[str], rows6: list[str] | None = None) -> list[str]:
    write_tables(root, rows4, rows6)
    return shown(Tables(str(root)).read_snapshot().fresh)


def test_a_capture_of_a_real_kernel() -> None:
    snapshot = Tables(str(FIXTURES / "linux-6.18"), "little").read_snapshot()
    assert shown(snapshot.fresh) == (FIXTURES / "linux-6.18" / "expected").read_text().splitlines()
    assert snapshot.malformed == []


def test_the_words_of_a_little_endian_kernel(tmp_path: Path) -> None:
    write_tables(tmp_path, [row(0, "0100007F:0050", "E10FA20A:01BB", 1, 9)], None)
    (found,) = Tables(str(tmp_path), "little").read_snapshot().fresh
    assert (str(found.end.local), str(found.end.remote)) == ("127.0.0.1:80", "10.162.15.225:443")


def test_the_words_of_a_big_endian_kernel(tmp_path: Path) -> None:
    address6 = "20010DB8000000000000000000000001:0050"
    mapped = "00000000000000000000FFFF0A00000A:01BB"
    write_tables(tmp_path, [row(0, "7F000001:0050", "0AA20FE1:01BB", 1, 9)], [row(0, address6, mapped, 1, 9)])
    ipv4, ipv6 = Tables(str(tmp_path), "big").read_snapshot().fresh
    assert str(ipv4.end.remote) == "10.162.15.225:443"
    assert (str(ipv6.end.local), str(ipv6.end.remote)) == ("[2001:db8::1]:80", "10.0.0.10:443")


def test_ipv6_is_four_words_and_mapped_is_ipv4(tmp_path: Path) -> None:
    rows = [
        row(0, endpoint6("2001:db8::1", 443), endpoint6("fe80::1:0:2", 50000), 1, 5),
        row(1, endpoint6("10.0.0.5", 80), endpoint6("192.0.2.56", 5973), 1, 6),
    ]
    assert read_rows(tmp_path, [], rows) == [
        "[2001:db8::1]:443 [fe80::1:0:2]:50000 ESTABLISHED 5",
        "10.0.0.5:80 192.0.2.56:5973 ESTABLISHED 6",
    ]


@pytest.mark.parametrize("first", [9_990, 99_990, 999_990])
def test_rows_whose_number_outgrows_its_column(tmp_path: Path, first: int) -> None:
    rows = [line(first + i, f"10.0.0.1:{i}", "10.0.0.2:80", inode=2**32 - 1 - i) for i in range(1, 20)]
    expected = [f"10.0.0.1:{i} 10.0.0.2:80 ESTABLISHED {2**32 - 1 - i}" for i in range(1, 20)]
    assert read_rows(tmp_path, rows) == expected


@pytest.mark.parametrize("uid", [0, 99_999, 100_000, 4_294_967_294])
def test_a_large_uid_shifts_the_inode(tmp_path: Path, uid: int) -> None:
    rows = [line(0, "10.0.0.1:1", "10.0.0.2:80", inode=4_294_967_295, uid=uid)]
    assert read_rows(tmp_path, rows) == ["10.0.0.1:1 10.0.0.2:80 ESTABLISHED 4294967295"]


def test_a_row_longer_than_the_padding(tmp_path: Path) -> None:
    rows = [line(0, "10.0.0.1:1", "10.0.0.2:80") + " " * 120, line(1, "10.0.0.1:2", "10.0.0.2:80")]
    assert len(read_rows(tmp_path, rows)) == 2


def test_more_rows_than_one_block(tmp_path: Path) -> None:
    count = 3 * BLOCK // 150 + 5
    rows = [line(i, f"10.0.{i >> 8}.{i & 255}:{i}", "10.9.9.9:80", inode=i) for i in range(1, count)]
    inodes = [int(text.split()[-1]) for text in read_rows(tmp_path, rows)]
    assert inodes == list(range(1, count))


def test_ipv6_off_is_normal_and_may_come_back(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    ipv6 = [row(0, endpoint6("::1", 1), endpoint6("::1", 2), 1, 5)]
    write_tables(tmp_path, [line(0, "10.0.0.1:1", "10.0.0.2:80")], ipv6)
    assert len(take(tables).fresh) == 2
    write_tables(tmp_path, [line(0, "10.0.0.1:1", "10.0.0.2:80")], None)
    assert shown(take(tables).gone) == ["[::1]:1 [::1]:2 ESTABLISHED 5"]
    write_tables(tmp_path, [line(0, "10.0.0.1:1", "10.0.0.2:80")], ipv6)
    assert len(take(tables).fresh) == 1


def test_only_differences_are_told(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    stays, changes = line(0, "10.0.0.1:1", "10.0.0.2:80"), line(1, "10.0.0.1:2", "10.0.0.2:80")
    write_tables(tmp_path, [stays, changes], [])
    take(tables)
    write_tables(tmp_path, [line(0, "10.0.0.1:2", "10.0.0.2:80", state=6, inode=0), stays], [])
    snapshot = take(tables)
    assert shown(snapshot.fresh) == ["10.0.0.1:2 10.0.0.2:80 TIME_WAIT 0"]
    assert shown(snapshot.gone) == ["10.0.0.1:2 10.0.0.2:80 ESTABLISHED 7"]
    assert len(tables) == 2


def test_unchanged_rows_near_a_fresh_one_and_asked_for(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    client = line(0, "10.0.0.1:5000", "10.0.0.2:80", inode=1)
    asked = line(1, "10.0.0.1:6000", "10.0.0.2:80", inode=2)
    other = line(2, "10.0.0.1:7000", "10.0.0.2:80", inode=3)
    write_tables(tmp_path, [client, asked, other], [])
    take(tables)
    server = row(0, endpoint6("10.0.0.2", 80), endpoint6("10.0.0.1", 5000), 1, 4)
    write_tables(tmp_path, [client, asked, other], [server])
    end = End(Endpoint(b"\x0a\0\0\1\x17\x70"), Endpoint(b"\x0a\0\0\2\0\x50"))
    tables.read_snapshot()
    assert sorted(found.inode for found in tables.find_unchanged([end])) == [1, 2]


@pytest.mark.parametrize("count", [2, MOST_ADDRESSES + 1])
def test_it_knows_which_ends_it_holds(tmp_path: Path, count: int) -> None:
    """However many local addresses there are."""
    rows = [line(i, f"10.1.{i >> 8}.{i & 255}:80", "10.0.0.2:5000", inode=i) for i in range(1, count + 1)]
    write_tables(tmp_path, rows, [])
    tables = Tables(str(tmp_path))
    take(tables)
    client = Endpoint(b"\x0a\0\0\2" + (5000).to_bytes(2, "big"))
    last = Endpoint(b"\x0a\1" + count.to_bytes(2, "big") + b"\0\x50")
    for local, held in ((last, True), (Endpoint(b"\x0a\2\0\1\0\x50"), False), (client, False)):
        assert tables.holds(End(local, client)) == held


def test_half_open_rows_are_left_out(tmp_path: Path) -> None:
    rows = [
        line(i, f"10.0.0.1:{i + 1}", "10.0.0.2:80", state=state)
        for i, state in enumerate((2, 3, 7, 0xC, 0xA))
    ]
    assert [text.split()[2] for text in read_rows(tmp_path, rows)] == ["LISTEN"]


@pytest.mark.parametrize(
    "bad",
    [
        "garbage",
        "   0: 0100007F:0050",
        "   0: 0100007G:0050 0100007F:0051 01 0:0 0:0 0 0 0 1",
        "   0: " + "0100007F:0050 0100007F:0051 0D 00000000:00000000 00:00000000 00000000     0        0 1",
        "",
        "no colon at all, but as long as a row of the table would be " + "x" * 80,
    ],
)
def test_a_malformed_row_is_skipped_and_told_once(tmp_path: Path, bad: str) -> None:
    tables = Tables(str(tmp_path))
    good = line(1, "10.0.0.1:1", "10.0.0.2:80")
    write_tables(tmp_path, [bad, good], [])
    snapshot = take(tables)
    assert shown(snapshot.fresh) == ["10.0.0.1:1 10.0.0.2:80 ESTABLISHED 7"]
    assert len(snapshot.malformed) == 1
    assert take(tables).malformed == []


def test_a_last_row_that_is_cut_off(tmp_path: Path) -> None:
    write_tables(tmp_path, [line(0, "10.0.0.1:1", "10.0.0.2:80")], None)
    with (tmp_path / "tcp").open("a") as table:
        table.write("   1: 0100007F:00")
    snapshot = Tables(str(tmp_path)).read_snapshot()
    assert (len(snapshot.fresh), len(snapshot.malformed)) == (1, 1)


@pytest.mark.parametrize("text", ["", "\n", "something else\n", "x" * (2 * BLOCK)])
def test_a_table_without_its_header_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tcp").write_text(text)
    with pytest.raises(TableError, match="header"):
        Tables(str(tmp_path)).read_snapshot()


def test_a_table_without_ends_of_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(HEADER4 + "\n" + "x" * (3 * BLOCK))
    with pytest.raises(TableError, match="end of line"):
        Tables(str(tmp_path)).read_snapshot()


def test_a_failed_reading_leaves_the_last_one_in_force(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    write_tables(tmp_path, [line(0, "10.0.0.1:1", "10.0.0.2:80")], [])
    take(tables)
    write_tables(tmp_path, [line(0, "10.0.0.1:2", "10.0.0.2:80")], [])
    (tmp_path / "tcp6").write_text("broken")
    with pytest.raises(TableError):
        take(tables)
    write_tables(tmp_path, [line(0, "10.0.0.1:2", "10.0.0.2:80")], [])
    snapshot = take(tables)
    assert (len(snapshot.fresh), len(snapshot.gone)) == (1, 1)


def test_the_running_kernel_has_no_malformed_row() -> None:
    snapshot = Tables().read_snapshot()
    assert snapshot.malformed == []
    assert snapshot.started < snapshot.ended
    assert all(found.state != TcpState.SYN_SENT for found in snapshot.fresh)


@pytest.mark.parametrize("inodes", [range(100, 120), range(5, 25)])
def test_what_stands_after_the_inode_is_not_kept(tmp_path: Path, inodes: range) -> None:
    """References and the socket's address change though nothing happened."""
    tables = Tables(str(tmp_path))
    rows = [line(i, f"10.0.0.1:{i + 1}", "10.0.0.2:80", inode=inode) for i, inode in enumerate(inodes)]
    rows6 = [
        row(i, endpoint6("::1", i + 1), endpoint6("::1", 80), 1, inode) for i, inode in enumerate(inodes)
    ]
    write_tables(tmp_path, rows, rows6)
    take(tables)
    busy = [
        [text.replace(" 1 0000000000000000 ", " 12 00000000deadbeef ") for text in r] for r in (rows, rows6)
    ]
    write_tables(tmp_path, *busy)
    snapshot = take(tables)
    assert (snapshot.fresh, snapshot.gone) == ([], [])


def test_slices_of_an_older_version_are_cut(tmp_path: Path) -> None:
    text = line(0, "10.0.0.1:1", "10.0.0.2:80")
    write_tables(tmp_path, [text], [])
    tables = Tables(str(tmp_path))
    tables.restore([[{text[6:36].encode() + text[76:106].encode()}], []])
    snapshot = take(tables)
    assert (snapshot.fresh, snapshot.gone) == ([], [])


def test_a_row_printed_twice_counts_once(tmp_path: Path) -> None:
    """Wherever the prints stand."""
    tables, count = Tables(str(tmp_path)), 2 * BLOCK // 150
    rows = [line(i, f"10.0.{i >> 8}.{i & 255}:{i}", "10.9.9.9:80", inode=i) for i in range(1, count)]
    twice = [rows[0], *rows, rows[-1], rows[5]]
    for shown_rows, fresh, gone in ((twice, count - 1, 0), (rows, 0, 0), (twice, 0, 0), ([], 0, count - 1)):
        write_tables(tmp_path, shown_rows, [])
        snapshot = take(tables)
        assert (len(snapshot.fresh), len(snapshot.gone)) == (fresh, gone)


def test_sockets_that_connect_are_counted_at_each_reading(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    row_of_one = line(0, "10.0.0.1:1", "10.0.0.2:80", state=TcpState.SYN_SENT)
    counts = []
    for rows in ([row_of_one, row_of_one], [row_of_one], [row_of_one], []):
        write_tables(tmp_path, rows, [])
        counts.append(take(tables).connecting)
    assert counts == [1, 1, 1, 0]


def test_only_a_newline_ends_a_row(tmp_path: Path) -> None:
    """A row that makes no sense may hold any other byte."""
    write_tables(tmp_path, ["   0: some\rnon\x0bsense", "   1: more"], None)
    assert len(Tables(str(tmp_path)).read_snapshot().malformed) == 2
