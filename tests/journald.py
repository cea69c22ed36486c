"""A journald that tests can stop: it takes entries and writes the fields of each as a line of JSON.

    journald.py SOCKET QUEUE FILE

QUEUE is how many entries wait in the kernel while it stands still; it is a setting of the network namespace
that this runs in. As a module it starts itself.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

LARGEST = 1 << 20


def parse(text: bytes) -> dict[str, str]:
    """The native protocol: NAME=value, or NAME, the length of the value in 8 bytes, and the value."""
    fields = {}
    while text:
        line, _, text = text.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(text[:8], "little")
            value, text = text[8 : 8 + length], text[9 + length :]
        fields[name.decode()] = value.decode()
    return fields


def serve(path: str, queue: str, target: str) -> None:
    Path("/proc/sys/net/unix/max_dgram_qlen").write_text(queue)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server, open(target, "a") as out:
        server.bind(path)
        os.chmod(path, 0o666)  # noqa: S103, the daemon runs as another user
        print("ready", flush=True)
        while True:
            text, controls, _, _ = server.recvmsg(LARGEST, 64)
            for _, _, descriptor in controls:  # too large for a datagram: in a file
                number = int.from_bytes(descriptor, sys.byteorder)
                text = os.pread(number, LARGEST, 0)
                os.close(number)
            out.write(json.dumps(parse(text)) + "\n")
            out.flush()


class Journald:
    """Its socket is `folder`/socket."""

    def __init__(self, folder: Path, queue: int) -> None:
        self.folder = folder
        folder.mkdir()
        folder.chmod(0o755)
        self._entries = folder / "entries"
        script = [sys.executable, __file__, str(folder / "socket"), str(queue), str(self._entries)]
        self._process = subprocess.Popen(["unshare", "--net", *script], stdout=subprocess.PIPE)
        assert self._process.stdout
        assert self._process.stdout.readline() == b"ready\n"

    def stand_still(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def read(self, message_id: str) -> list[dict[str, str]]:
        """The entries of this kind."""
        whole = self._entries.read_text().rpartition("\n")[0]
        found: list[dict[str, str]] = list(map(json.loads, whole.splitlines()))
        return [fields for fields in found if fields["MESSAGE_ID"] == message_id]

    def end(self) -> None:
        """Its socket stays, and nobody has it."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Journald:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


if __name__ == "__main__":
    serve(*sys.argv[1:])
