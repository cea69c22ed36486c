"""A virtual machine with Debian's own kernel, emulated by qemu, that runs one script and powers off."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from tests.namespace import run
from tests.system.container import PROJECT, Layers, install, make_tree

if TYPE_CHECKING:
    from pathlib import Path

KERNEL = "linux-image-cloud-amd64,initramfs-tools,udev,kmod,util-linux"
KERNEL += ",dbus,libpam-systemd,systemd-container,passwd"
SCENARIO_TIMEOUT, TOLD_IN = 220, 80
"""Seconds of a scenario, and for its machine to boot and to tell its journal, before it is switched off."""
EMULATOR_FAULT = "Oops: int3"
"""How a kernel ends that patched itself as it booted, and was emulated from what it had been before."""
UNIT = """[Unit]
After=multi-user.target
[Service]
Type=oneshot
TimeoutStartSec={timeout}
StandardOutput=journal+console
StandardError=journal+console
Environment=PYTHONPATH=/src:/usr/lib/tcpwatchd
ExecStart=/usr/bin/python3 -m tests.system.inside {scenario}
ExecStopPost=/bin/sh -c 'journalctl -o short-monotonic > /journal.txt; sync; systemctl poweroff --force'
[Install]
WantedBy=multi-user.target
"""


def run_inside(
    suite: str,
    scenario: str,
    parameters: str,
    folder: Path,
    package: Path | None = None,
    more: str = "",
    seconds: int = SCENARIO_TIMEOUT,
) -> Any:
    """Boot, run a scenario, with its module, and return what it wrote; a package is put into /root.

    `more` are packages of Debian that it needs, each after a comma; `seconds` are those that it may take.
    """
    image = folder / f"{scenario}.ext4"
    layers = Layers(make_tree(suite, KERNEL + more))
    try:
        if package:
            shutil.copy(package, layers.root / "root")
        else:
            install(layers.root)
        shutil.copytree(PROJECT / "tests", layers.root / "src/tests")
        shutil.copy(PROJECT / "README.md", layers.root / "src")
        (layers.root / "etc/systemd/system/scenario.service").write_text(
            UNIT.format(scenario=scenario, timeout=seconds)
        )
        run("systemctl", "--root", layers.root, "enable", "--quiet", "scenario.service")
        run("mkfs.ext4", "-q", "-d", layers.root, image, "2G")
        console = boot(layers.root, image, parameters, seconds + TOLD_IN)
        if EMULATOR_FAULT in console and "systemd[1]" not in console:
            console = boot(layers.root, image, parameters, seconds + TOLD_IN)
    finally:
        layers.remove()
    results = run("debugfs", "-R", "cat /results.json", image).stdout
    journal = run("debugfs", "-R", "cat /journal.txt", image).stdout
    image.unlink()
    assert results, f"nothing written; the console:\n{console[-5000:]}\nthe journal:\n{journal[-5000:]}"
    return json.loads(results)


def boot(root: Path, image: Path, parameters: str, timeout: int) -> str:
    """Until it powers off; what its console showed."""
    (kernel,), (initrd,) = (list((root / "boot").glob(f"{name}-*")) for name in ("vmlinuz", "initrd.img"))
    machine = ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "1024"]
    devices = ["-nographic", "-no-reboot", "-nic", "none", "-drive", f"file={image},if=virtio,format=raw"]
    command_line = f"root=/dev/vda rw console=ttyS0 quiet panic=-1 {parameters}"
    system = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", command_line]
    with subprocess.Popen(
        machine + devices + system,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    return output.decode(errors="replace")
