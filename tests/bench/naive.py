"""The usual poller, as a peer: every row is split and compared at every poll. Usage: naive.py INTERVAL"""

from __future__ import annotations

import socket
import struct
import sys
import time

Pair = tuple[str, str]


def read_pairs() -> set[Pair]:
    pairs = set()
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(path) as table:
            for line in table.readlines()[1:]:
                fields = line.split()
                if fields[3] == "01":
                    pairs.add((fields[1], fields[2]))
    return pairs


def show(text: str) -> str:
    address, port = text.split(":")
    packed = b"".join(struct.pack("=I", int(address[i : i + 8], 16)) for i in range(0, len(address), 8))
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return f"{socket.inet_ntop(family, packed)} {int(port, 16)}"


def main() -> None:
    known: set[Pair] = set()
    while True:
        pairs = read_pairs()
        for local, remote in pairs - known:
            print(show(local), show(remote), flush=True)
        known = pairs
        time.sleep(float(sys.argv[1]))


if __name__ == "__main__":
    main()
