r"""Units and containers, of paths as systemd and container managers make them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.owners.units import NOWHERE, Place, find_place

ID = "4f1e2d3c" * 8
POD = "pod8b0c3a5e_3b1f_4b8e_9d1c_0e6a5f7d2c11"
USER = "/user.slice/user-1000.slice/user@1000.service"
MANAGER = "user@1000.service"
SYSTEMD = [
    ("/system.slice/ssh.service", "ssh.service", None),
    ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", None),
    (r"/system.slice/job@x\x2dy.service", r"job@x\x2dy.service", None),
    (r"/system.slice/dev-disk-by\x2duuid-1.swap", r"dev-disk-by\x2duuid-1.swap", None),
    ("/system.slice/docker.socket", "docker.socket", None),
    (r"/system.slice/mnt-data\x2d1.mount", r"mnt-data\x2d1.mount", None),
    ("/system.slice/__private.service", "_private.service", None),
    ("/system.slice/_cgroup.service", "cgroup.service", None),
    ("/system.slice/_cpu.service", "cpu.service", None),
    ("/system.slice/cups.service/worker", "cups.service", None),
    ("/system.slice/cups.service/inner.service", "cups.service", None),
    ("/system.slice/run-u42.service", "run-u42.service", None),
    ("/init.scope", "init.scope", None),
    ("/system.slice", "system.slice", None),
    ("/a.slice/a-b.slice/a-b-c.slice", "a-b-c.slice", None),
    ("/a.slice/a-b.slice/web.service", "web.service", None),
    ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope", None),
    ("/user.slice/user-1000.slice", "user-1000.slice", None),
    (USER, MANAGER, None),
    (f"{USER}/init.scope", MANAGER, "init.scope"),
    (f"{USER}/app.slice/mine.service", MANAGER, "mine.service"),
    (f"{USER}/app.slice/app-flatpak.slice/app-x@1.service", MANAGER, "app-x@1.service"),
    (
        rf"{USER}/app.slice/app-gnome-org.mozilla.Firefox\x2d1-4242.scope",
        MANAGER,
        r"app-gnome-org.mozilla.Firefox\x2d1-4242.scope",
    ),
    (f"{USER}/session.slice", MANAGER, "session.slice"),
    (f"{USER}/mine.service", MANAGER, "mine.service"),
    (f"{USER}/no unit/mine.service", MANAGER, None),
    ("/system.slice/user@1000.service.d/a.service", None, None),
    ("/system.slice/user@alice.service/a.service", "user@alice.service", None),
    ("/", None, None),
    ("/cron", None, None),
    ("/.service", None, None),
    ("/system.slice/cron", None, None),
    ("/system.slice/ssh.service.wants", None, None),
    ("/system.slice/backup.timer", None, None),
]
"""Path, unit and user's unit."""
CONTAINERS = [
    (f"/system.slice/docker-{ID}.scope", f"docker-{ID}.scope", None, ID),
    (f"/docker/{ID}", None, None, ID),
    (f"/machine.slice/libpod-{ID}.scope", f"libpod-{ID}.scope", None, ID),
    (f"/machine.slice/libpod-{ID}.scope/container", f"libpod-{ID}.scope", None, ID),
    (f"/machine.slice/libpod-{ID}.scope/container/init.scope", f"libpod-{ID}.scope", None, ID),
    (f"/machine.slice/machine-libpod_pod_{ID}.slice/libpod-{ID}.scope", f"libpod-{ID}.scope", None, ID),
    (f"/libpod_parent/libpod-{ID}", None, None, ID),
    (f"{USER}/user.slice/libpod-{ID}.scope/container", MANAGER, f"libpod-{ID}.scope", ID),
    (f"{USER}/app.slice/docker-{ID}.scope", MANAGER, f"docker-{ID}.scope", ID),
    (f"/machine.slice/libpod-conmon-{ID}.scope", f"libpod-conmon-{ID}.scope", None, None),
    (f"{USER}/user.slice/libpod-conmon-{ID}.scope", MANAGER, f"libpod-conmon-{ID}.scope", None),
    ("/libpod_parent/conmon", None, None, None),
    (
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{POD}.slice/crio-{ID}.scope",
        f"crio-{ID}.scope",
        None,
        ID,
    ),
    (f"/kubepods.slice/kubepods-{POD}.slice/crio-{ID}.scope/container", f"crio-{ID}.scope", None, ID),
    (f"/kubepods.slice/kubepods-{POD}.slice/crio-conmon-{ID}.scope", f"crio-conmon-{ID}.scope", None, None),
    (
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-{POD}.slice/cri-containerd-{ID}.scope",
        f"cri-containerd-{ID}.scope",
        None,
        ID,
    ),
    (f"/kubepods/burstable/{POD}/{ID}", None, None, ID),
    (f"/kubepods/{POD}/{ID}", None, None, ID),
    (f"/kubepods-besteffort-{POD}.slice:cri-containerd:{ID}", None, None, ID),
    (
        f"/system.slice/containerd.service/kubepods-burstable-{POD}.slice:cri-containerd:{ID}",
        "containerd.service",
        None,
        ID,
    ),
    (f"/kubepods.slice/kubepods-{POD}.slice", f"kubepods-{POD}.slice", None, None),
    (f"/system.slice/nerdctl-{ID}.scope", f"nerdctl-{ID}.scope", None, ID),
    (f"{USER}/user.slice/nerdctl-{ID}.scope", MANAGER, f"nerdctl-{ID}.scope", ID),
    (f"/default/{ID}", None, None, ID),
    (
        "/machine.slice/systemd-nspawn@box.service/payload/system.slice/cron.service",
        "systemd-nspawn@box.service",
        None,
        "box",
    ),
    (
        r"/machine.slice/systemd-nspawn@my\x2dbox.service/payload",
        r"systemd-nspawn@my\x2dbox.service",
        None,
        "my-box",
    ),
    (r"/machine.slice/machine-my\x2dbox.scope/payload", r"machine-my\x2dbox.scope", None, "my-box"),
    ("/machine.slice/machine-box.scope", "machine-box.scope", None, "box"),
    ("/lxc.payload.web", None, None, "web"),
    ("/lxc.payload.web/system.slice/nginx.service", None, None, "web"),
    ("/lxc.payload.web/lxc.payload.inner", None, None, "web"),
    ("/lxc.monitor.web", None, None, None),
    ("/lxc.monitor/101", None, None, None),
    ("/lxc/web", None, None, "web"),
    ("/lxc/101/ns/system.slice/ssh.service", None, None, "101"),
    ("/lxc/outer/lxc/inner", None, None, "outer"),
    ("/lxc", None, None, None),
    (f"/system.slice/docker-{ID}.scope/docker/{ID[::-1]}", f"docker-{ID}.scope", None, ID),
    (f"/lxc.payload.web/system.slice/docker-{ID}.scope", None, None, "web"),
    (f"/system.slice/docker-{ID[:-1]}.scope", f"docker-{ID[:-1]}.scope", None, None),
    (f"/docker/{ID.upper()}", None, None, None),
    (f"/system.slice/docker-{ID}.service", f"docker-{ID}.service", None, None),
    ("/system.slice/docker.service", "docker.service", None, None),
]
"""Path, unit, user's unit and container."""
HOSTILE = [
    (b"/system.slice/a\nb.service", NOWHERE),
    (b"/system.slice/a.service\n", NOWHERE),
    (b"/system.slice/\x1b[31m.service", NOWHERE),
    (b"/system.slice/\xff.service", NOWHERE),
    ("/system.slice/é.service".encode(), NOWHERE),
    (b"/system.slice/a b.service", NOWHERE),
    (b"/system.slice/" + b"x" * 300 + b".service", NOWHERE),
    (b"/x" * 2000, NOWHERE),
    (b"//////", NOWHERE),
    (b"", NOWHERE),
    (b"/../system.slice/ssh.service", NOWHERE),
    (b"/..", NOWHERE),
    (b"/../../lxc/web", NOWHERE),
    (b"/lxc/a\nb", NOWHERE),
    (b"/lxc/\xff", NOWHERE),
    (b"/lxc.payload.a\nb", NOWHERE),
    (f"{USER}/a\nPROCESS_USER_ID=0.service".encode(), Place(MANAGER, None, None)),
    (f"{USER}/\x1b[2J.scope".encode(), Place(MANAGER, None, None)),
    (
        rb"/machine.slice/machine-a\x0ab.scope",
        Place(r"machine-a\x0ab.scope", None, r"a\x0ab"),
    ),
    (rb"/machine.slice/machine-\x1b\xff.scope", Place(r"machine-\x1b\xff.scope", None, r"\x1b\xff")),
    (rb"/machine.slice/machine-a\x5cx0ab.scope", Place(r"machine-a\x5cx0ab.scope", None, r"a\x0ab")),
]


@pytest.mark.parametrize(("path", "unit", "user_unit"), SYSTEMD)
def test_units(path: str, unit: str | None, user_unit: str | None) -> None:
    assert find_place(path.encode()) == Place(unit, user_unit, None)


@pytest.mark.parametrize(("path", "unit", "user_unit", "container"), CONTAINERS)
def test_containers(path: str, unit: str | None, user_unit: str | None, container: str | None) -> None:
    """The program that watches over a container is none of its own."""
    assert find_place(path.encode()) == Place(unit, user_unit, container)


@pytest.mark.parametrize(("path", "place"), HOSTILE)
def test_hostile_names(path: bytes, place: Place) -> None:
    """What no unit can be called is none, and what is told is safe to print."""
    assert find_place(path) == place


def test_in_a_container_names_are_its_own() -> None:
    """Of a unit inside one, the unit of this machine is told."""
    path = f"/system.slice/docker-{ID}.scope/system.slice/ssh.service"
    assert find_place(path.encode()).unit == f"docker-{ID}.scope"
    path = f"/system.slice/evil.service/user@0.service/a.service/docker-{ID}.scope"
    assert find_place(path.encode()) == Place("evil.service", None, ID)


@given(st.binary(max_size=200), st.sampled_from(["", "/system.slice", USER, "/lxc", "/machine.slice"]))
def test_whatever_the_path_what_is_told_is_one_printable_word(name: bytes, folder: str) -> None:
    for told in find_place(folder.encode() + b"/" + name):
        assert told is None or (told.isascii() and told.isprintable() and 0 < len(told) <= 255)
