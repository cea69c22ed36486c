"""Makes the Debian trees that containers and virtual machines start from, if they are not there yet."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

from tests.system.container import CACHE, FAIL2BAN, PROMETHEUS, make_tree
from tests.system.machine import KERNEL
from tests.system.packages import TOOLS

SUITES = ("bookworm", "trixie")
KINDS = {
    "plain": "",
    "with a kernel": KERNEL,
    "with build tools": TOOLS,
    "with fail2ban": FAIL2BAN,
    "with Prometheus": PROMETHEUS,
}


def prepare(suite: str) -> None:
    for name, packages in KINDS.items():
        began = time.monotonic()
        make_tree(suite, packages)
        if time.monotonic() - began > 1:
            print(f"tests: made a tree of Debian {suite}, {name}", flush=True)


if __name__ == "__main__" and shutil.which("debootstrap"):
    print(f"tests: Debian trees in {CACHE}: made once, in about four minutes", flush=True)
    with ThreadPoolExecutor(len(SUITES)) as pool:
        list(pool.map(prepare, SUITES))
