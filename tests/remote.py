"""A remote host that is no socket of this kernel: userspace TCP behind a TUN device.

    remote.py COUNT

Run in a network namespace of its own. Opens COUNT connections from kernel sockets to the remote and has the
remote open COUNT to a kernel socket; prints both as JSON, [source, port, destination, port] each, and keeps
the namespace until stdin ends. The remote knows just enough of RFC 9293: handshakes both ways, and that a FIN
is acknowledged and answered with one.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading

HERE, REMOTE = "10.80.0.1", "10.80.0.2"
REMOTE_PORT, KERNEL_PORT, FIRST_PORT = 80, 9000, 30000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
FIN, SYN, RST, ACK = 1, 2, 4, 16


def checksum(data: bytes) -> int:
    """RFC 1071."""
    words = struct.unpack(f"!{len(data) // 2}H", data)
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def make_packet(
    port: int, to_port: int, sequence: int, acknowledged: int, flags: int, content: bytes = b""
) -> bytes:
    """From the remote to this host; the content has an even length."""
    addresses = socket.inet_aton(REMOTE) + socket.inet_aton(HERE)
    fields = [port, to_port, sequence & 0xFFFFFFFF, acknowledged & 0xFFFFFFFF, 5 << 4, flags, 65535, 0, 0]
    pseudo = addresses + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20 + len(content))
    fields[7] = checksum(pseudo + struct.pack("!HHIIBBHHH", *fields) + content)
    header = [0x45, 0, 40 + len(content), 0, 0, 64, socket.IPPROTO_TCP, 0]
    header[7] = checksum(struct.pack("!BBHHHBBH", *header) + addresses)
    return struct.pack("!BBHHHBBH", *header) + addresses + struct.pack("!HHIIBBHHH", *fields) + content


class Remote:
    """Its own sequence numbers begin at 1000 for each connection."""

    def __init__(self) -> None:
        self._tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._tun, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))

    def open(self, port: int) -> None:
        self.send(port, 1000, 0, SYN)

    def send(self, port: int, sequence: int, acknowledged: int, flags: int, content: bytes = b"") -> None:
        """To the port that the kernel listens at."""
        os.write(self._tun, make_packet(port, KERNEL_PORT, sequence, acknowledged, flags, content))

    def run(self) -> None:
        while True:
            packet = os.read(self._tun, 2048)
            if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP:
                self._answer(packet[(packet[0] & 15) * 4 :])

    def _answer(self, segment: bytes) -> None:
        port, to_port, sequence, acknowledged, offset, flags = struct.unpack_from("!HHIIBB", segment)
        length = len(segment) - (offset >> 4) * 4
        reply = None
        if flags & RST:
            return
        if flags & SYN:
            reply = (1001, sequence + 1, ACK) if flags & ACK else (1000, sequence + 1, SYN | ACK)
        elif flags & FIN:
            reply = (acknowledged, sequence + length + 1, FIN | ACK)
        if reply:
            os.write(self._tun, make_packet(to_port, port, *reply))


def set_up() -> Remote:
    remote = Remote()
    for command in (f"address add {HERE}/24 dev tun0", "link set tun0 up", "link set lo up"):
        subprocess.run(["ip", *command.split()], check=True)
    return remote


def main(count: int) -> None:
    remote = set_up()
    threading.Thread(target=remote.run, daemon=True).start()
    egress, ingress = [], []
    for _ in range(count):
        with socket.create_connection((REMOTE, REMOTE_PORT), timeout=10) as client:
            egress.append([*client.getsockname(), *client.getpeername()])
    with socket.create_server((HERE, KERNEL_PORT)) as server:
        server.settimeout(10)
        for number in range(count):
            remote.open(FIRST_PORT + number)
            with server.accept()[0] as accepted:
                ingress.append([*accepted.getpeername(), *accepted.getsockname()])
        print(json.dumps([egress, ingress]), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]))
