"""What a bare interpreter takes, and how long the installed program does until it is ready.

start.py resident | times COUNT
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time

BARE = ["/usr/bin/python3", "-c", "pass"]
RESIDENT = ["/usr/bin/python3", "-c", "print(open('/proc/self/status').read().split('VmRSS:')[1].split()[0])"]
PROGRAM = ["/usr/bin/tcpwatchd", "--output", "journal", "--trace", "no"]


def time_bare() -> float:
    began = time.perf_counter()
    subprocess.run(BARE, check=True)
    return time.perf_counter() - began


def time_program() -> float:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{folder}/notify")
        environment = {**os.environ, "NOTIFY_SOCKET": f"{folder}/notify"}
        began = time.perf_counter()
        with subprocess.Popen(PROGRAM, env=environment) as process:
            while b"READY=1" not in manager.recv(4096):
                pass
            took = time.perf_counter() - began
            process.terminate()
    return took


def main() -> None:
    if sys.argv[1] == "resident":
        print(subprocess.run(RESIDENT, check=True, capture_output=True, text=True).stdout)
    else:
        print(json.dumps([(time_program(), time_bare()) for _ in range(int(sys.argv[2]))]))


if __name__ == "__main__":
    main()
