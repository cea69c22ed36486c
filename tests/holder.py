"""Processes that make real connections: tests/traffic.py and tests/mixed.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.namespace import enter_network


class Traffic:
    """Traffic in the network of process `network`; it goes on until `end`."""

    def __init__(self, network: int, *arguments: str, script: str = "traffic.py") -> None:
        program = [sys.executable, str(Path(__file__).with_name(script))]
        command = [*enter_network(network), *program, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def truth(self) -> Any:
        """What its sockets saw; waits until they all did."""
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def end(self) -> str:
        """What else it said."""
        return self._process.communicate(timeout=60)[0]
