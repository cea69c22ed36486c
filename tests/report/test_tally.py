"""Counts in bounded memory, against counts of everything."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.report.tally import BYTES, IN, OUT, RESETS, WITHIN, Largest, Tally, count

streams = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from([IN, OUT, WITHIN]), st.integers(0, 5)), max_size=120
)


@given(streams, st.integers(1, 6))
def test_no_name_has_more_than_it_says_and_what_is_missed(
    stream: list[tuple[int, int, int]], most: int
) -> None:
    tally, exact = Tally(most), Counter[int]()
    for key, direction, number in stream:
        tally.find_row(key)[direction] += number
        exact[key] += number
        assert len(tally.rows) <= 2 * most
    for key, number in exact.items():
        told = count(tally.rows[key]) if key in tally.rows else 0
        assert told <= number <= told + tally.most_missed
    if len(exact) <= 2 * most:
        assert tally.most_missed == 0


@given(streams, st.integers(1, 8))
def test_the_top_is_sorted_by_connections_then_bytes_then_name(
    stream: list[tuple[int, int, int]], number: int
) -> None:
    tally = Tally(100)
    for key, direction, connections in stream:
        row = tally.find_row(key)
        row[direction] += connections
        row[BYTES] += connections % 3
    counted = {key for key, row in tally.rows.items() if any(row)}
    ranked = sorted(counted, key=lambda key: (-count(tally.rows[key]), -tally.rows[key][BYTES], key))
    assert [key for key, _ in tally.list_top(number)] == ranked[:number]


def test_only_what_was_reset_is_listed_as_reset() -> None:
    tally = Tally(10)
    for key, resets in (b"a", 1), (b"b", 0), (b"c", 7), (b"d", 1):
        tally.find_row(key)[RESETS] += resets
    assert [key for key, _ in tally.list_reset(2)] == [b"c", b"a"]
    assert [key for key, _ in tally.list_reset(9)] == [b"c", b"a", b"d"]


@given(st.lists(st.integers(0, 20), max_size=60), st.integers(1, 5))
def test_the_largest_are_those_of_all_and_the_first_of_equal_ones(values: list[int], most: int) -> None:
    largest = Largest(most)
    for number, value in enumerate(values):
        if value > largest.least:  # as whoever fills it does
            largest.add(value, number)
    expected = sorted(enumerate(values), key=lambda item: (-item[1], item[0]))[:most]
    assert largest.items == [(value, number) for number, value in expected]


@pytest.mark.parametrize("most", [1, 3])
def test_what_cannot_be_compared_is_no_obstacle(most: int) -> None:
    largest = Largest(most)
    for value in 5, 5, 5, 6, 6:
        largest.add(value, {})
    assert [value for value, _ in largest.items] == [6, 6, 5][:most]
