"""Many connections in little memory: bytes in buckets, and no object for each. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKETS = 4096
"""A hundred thousand connections are 24 in a bucket, which is still found and changed as one piece."""

Item = TypeVar("Item")


class Packed:
    """Values of one size by keys of one size; a key can have several, in the order in which they came."""

    def __init__(self, key: int, value: int) -> None:
        self._key = key
        self._size = key + value
        self._buckets: list[bytes] = []
        """Empty until there is something to keep."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, key: bytes, value: bytes) -> None:
        if not self._buckets:
            self._buckets = [b""] * BUCKETS
        self._buckets[hash(key) % BUCKETS] += key + value
        self._count += 1

    def find(self, key: bytes) -> list[bytes]:
        """The values of a key."""
        found: list[bytes] = []
        if not self._buckets:
            return found
        bucket = self._buckets[hash(key) % BUCKETS]
        at = self._find_place(bucket, key, 0)
        while at >= 0:
            found.append(bucket[at + self._key : at + self._size])
            at = self._find_place(bucket, key, at + self._size)
        return found

    def remove(self, key: bytes, value: bytes) -> None:
        """Raises KeyError if it is not there."""
        self._replace(key, value, b"")
        self._count -= 1

    def change(self, key: bytes, before: bytes, value: bytes) -> None:
        """Raises KeyError if it is not there."""
        self._replace(key, before, key + value)

    def _replace(self, key: bytes, value: bytes, record: bytes) -> None:
        number = hash(key) % BUCKETS
        bucket = self._buckets[number]
        at = self._find_place(bucket, key + value, 0)
        if at < 0:
            raise KeyError(key)
        self._buckets[number] = bucket[:at] + record + bucket[at + self._size :]

    def _find_place(self, bucket: bytes, text: bytes, start: int) -> int:
        """Where a record begins with a text, from there on, or -1. Found elsewhere it is parts of others."""
        at = bucket.find(text, start)
        while at > 0 and at % self._size:
            at = bucket.find(text, at + 1)
        return at

    def split(self, text: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values, of records in a row."""
        for at in range(0, len(text), self._size):
            yield text[at : at + self._key], text[at + self._key : at + self._size]

    @property
    def text(self) -> bytes:
        """All records in a row."""
        return b"".join(self._buckets)


class Shared(Generic[Item]):
    """What many have in common, each kept once, by a number."""

    def __init__(self) -> None:
        self._numbers: dict[Item, int] = {}
        self._items: dict[int, tuple[Item, int]] = {}
        """Each with how many have it."""
        self._free: list[int] = []

    def take(self, item: Item) -> int:
        """Its number, for one more."""
        number = self._numbers.get(item)
        if number is None:
            number = self._free.pop() if self._free else len(self._items)
            self._numbers[item], self._items[number] = number, (item, 0)
        item, users = self._items[number]
        self._items[number] = item, users + 1
        return number

    def find(self, number: int) -> Item:
        """Raises KeyError."""
        return self._items[number][0]

    def release(self, number: int) -> None:
        """One less has it."""
        item, users = self._items[number]
        if users > 1:
            self._items[number] = item, users - 1
        else:
            del self._items[number], self._numbers[item]
            self._free.append(number)

    @property
    def items(self) -> dict[int, Item]:
        return {number: item for number, (item, _) in self._items.items()}
