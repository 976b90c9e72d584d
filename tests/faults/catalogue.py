"""Faults from outside, as values: how each strikes, how it heals, and what may become of the work it hits.

They strike while every machine on the belt is held at work in another mode.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import libvirt

from tests.faults.belt import AT_WORK, Belt
from vmkeep.contract.modes import Mode

NONE: frozenset[Mode] = frozenset()
# Works on the backup directory, and the others; works with libvirt, and the others.
AT_THE_BACKUP = frozenset({Mode.RETAINING, Mode.UNRETAINING_SMALL_FILES, Mode.UNRETAINING_LARGE_FILES, Mode.DELETING})
WITH_LIBVIRT = frozenset({Mode.SNAPSHOTTING, Mode.MERGING, Mode.RESTORING})
EVERY = frozenset(AT_WORK)
ON_FILES = frozenset({Mode.RETAINING, Mode.UNRETAINING_LARGE_FILES, Mode.DELETING})  # alone; libvirt may be away
_HOUR = 3600


def _nothing(_belt: Belt) -> None:
    """What heals by itself."""


@dataclass(frozen=True)
class Fault:
    """`part`: what it hits. `may_fail`: modes whose work may end with a return value and a sentence instead of well.

    `guests_wait`: a machine that stands still comes back only once the fault is healed; with all others it does so
    while the fault lasts. `goes_on`: modes whose work ends while it lasts. `takes_power`: machines that ran are off
    afterwards. `leaves_end`: what leaves are at, by the fault itself. `holds`: where work is held, if not as always.
    """

    name: str
    part: str
    strike: Callable[[Belt], None]
    heal: Callable[[Belt], None] = _nothing
    may_fail: frozenset[Mode] = NONE
    guests_wait: bool = False
    goes_on: frozenset[Mode] = NONE
    takes_power: bool = False
    leaves_end: str = ""
    holds: Mapping[Mode, tuple[str, ...]] = field(default_factory=dict)


# vmkeep's own


def _kill_agent(belt: Belt) -> None:
    belt.lab.kill_agent(belt.node)


def _stop_agent(belt: Belt) -> None:
    belt.signal_agent(signal.SIGSTOP)


def _continue_agent(belt: Belt) -> None:
    belt.signal_agent(signal.SIGCONT)


def _start_second_agent(belt: Belt) -> None:
    belt.start_second_agent()


def _end_second_agent(belt: Belt) -> None:
    belt.end_second_agent()


def _clock(seconds: int) -> Callable[[Belt], None]:
    return lambda belt: belt.shift_clock(seconds)


# the directory


def _kill_directory(belt: Belt) -> None:
    belt.lab.kill_directory()


def _start_directory(belt: Belt) -> None:
    if belt.lab.process("slapd") is None:
        belt.lab.start_directory()


def _stop_directory(belt: Belt) -> None:
    belt.lab.directory.pause()


def _continue_directory(belt: Belt) -> None:
    belt.lab.directory.unpause()


def _read_only(value: str) -> Callable[[Belt], None]:
    return lambda belt: belt.lab.directory.set_database("olcReadOnly", value)


def _fill_directory(belt: Belt) -> None:
    belt.full_directory.fill()


def _empty_directory(belt: Belt) -> None:
    belt.full_directory.empty()


def _slow(seconds: float) -> Callable[[Belt], None]:
    def slow(belt: Belt) -> None:
        belt.wire.slow = seconds

    return slow


def _lose_answers(belt: Belt) -> None:
    belt.wire.lose_answers_to_writes(len(AT_WORK))


def _lose_no_more(belt: Belt) -> None:
    belt.wire.lose_answers_to_writes(0)


def _cut(belt: Belt) -> None:
    belt.wire.cut()


def _mend(belt: Belt) -> None:
    belt.wire.mend()


def _flap(belt: Belt) -> None:
    for _ in range(3):
        belt.wire.cut()
        belt.wire.mend()


# libvirt and QEMU


def _kill_libvirtd(belt: Belt) -> None:
    belt.lab.nodes[belt.node].kill_libvirtd()


def _start_libvirtd(belt: Belt) -> None:
    if belt.lab.nodes[belt.node].libvirtd is None:
        belt.lab.nodes[belt.node].restart_libvirtd()


def _signal_libvirtd(number: int) -> Callable[[Belt], None]:
    def send(belt: Belt) -> None:
        daemon = belt.libvirtd
        assert daemon is not None
        daemon.kill(number)

    return send


def _signal_every_qemu(number: int) -> Callable[[Belt], None]:
    def send(belt: Belt) -> None:
        for process in belt.lab.nodes[belt.node].processes("qemu-system"):
            process.kill(number)

    return send


def _switch_all_off(belt: Belt) -> None:
    for place in belt.places.values():
        with contextlib.suppress(libvirt.libvirtError):  # it stands still, and is off already
            place.machine.node.domain(place.machine.name).destroy()


def _undefine_all(belt: Belt) -> None:
    for place in belt.places.values():
        place.machine.node.domain(place.machine.name).undefine()


def _define_all(belt: Belt) -> None:
    belt.define_again()


# rooms


def fill(folder: Path) -> None:
    """Leave no room on the filesystem of a folder."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (64 << 20, 1 << 20, 4096):
            with contextlib.suppress(OSError):  # no room for so much; for less there may be
                while True:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)


def make_room(folder: Path) -> None:
    (folder / "filler").unlink(missing_ok=True)


def _fill_ram(belt: Belt) -> None:
    fill(belt.lab.nodes[belt.node].ram)


def _empty_ram(belt: Belt) -> None:
    make_room(belt.lab.nodes[belt.node].ram)


def _fill_store(belt: Belt) -> None:
    fill(belt.lab.nodes[belt.node].store)


def _empty_store(belt: Belt) -> None:
    make_room(belt.lab.nodes[belt.node].store)
    belt.let_go_who_waited_for_room()


def _backup(**faults: str) -> Callable[[Belt], None]:
    return lambda belt: belt.backup.fail(**faults)


def _signal_backup(number: int) -> Callable[[Belt], None]:
    return lambda belt: belt.backup.process.kill(number)


# people


def _delete_leaves(belt: Belt) -> None:
    for place in belt.places.values():
        belt.plain.delete_tree(belt.plain.leaf_dn(place.machine.name, place.asked))


def _fail_leaves(belt: Belt) -> None:
    for place in belt.places.values():
        dn = belt.plain.leaf_dn(place.machine.name, place.asked)
        failed = ["replace sstProvisioningReturnValue 1", f"replace sstProvisioningState {place.asked}"]
        classes = (belt.asked_leaf(place) or {})["objectClass"]
        own = [] if "vmkeepLeaf" in classes else ["add objectClass vmkeepLeaf"]
        belt.plain.modify(dn, *own, *failed, "replace vmkeepMessage ended by hand")


def _move_images_away(belt: Belt) -> None:
    for place in belt.places.values():
        for disk in place.machine.disks:
            disk.rename(disk.with_name(f"moved.{disk.name}"))


def _move_images_back(belt: Belt) -> None:
    for place in belt.places.values():
        for disk in place.machine.disks:
            moved = disk.with_name(f"moved.{disk.name}")
            if disk.exists():
                moved.unlink()
            else:
                moved.rename(disk)


def _move_machines(node: str) -> Callable[[Belt], None]:
    def move(belt: Belt) -> None:
        for place in belt.places.values():
            belt.plain.modify(belt.plain.machine_dn(place.machine.name), f"replace sstNode {node or belt.node}")

    return move


CATALOGUE = (
    Fault("agent killed", "agent", _kill_agent, guests_wait=True),
    Fault("agent stopped", "agent", _stop_agent, _continue_agent, guests_wait=True),
    Fault("second agent", "agent", _start_second_agent, _end_second_agent),
    Fault("clock an hour ahead", "agent", _clock(_HOUR), _clock(0)),
    Fault("clock an hour behind", "agent", _clock(-_HOUR), _clock(0)),
    Fault("directory killed", "directory", _kill_directory, _start_directory),
    Fault("directory stopped", "directory", _stop_directory, _continue_directory),
    Fault("directory read-only", "directory", _read_only("TRUE"), _read_only("FALSE")),
    Fault("directory full", "directory", _fill_directory, _empty_directory),
    Fault("directory slow", "directory", _slow(0.5), _slow(0)),
    Fault("answers lost", "directory", _lose_answers, _lose_no_more),
    Fault("network cut", "directory", _cut, _mend),
    Fault("network flapping", "directory", _flap),
    Fault("libvirtd killed", "libvirt", _kill_libvirtd, _start_libvirtd, guests_wait=True),
    Fault(
        "libvirtd stopped",
        "libvirt",
        _signal_libvirtd(signal.SIGSTOP),
        _signal_libvirtd(signal.SIGCONT),
        guests_wait=True,
        goes_on=ON_FILES,
    ),
    Fault("qemu killed", "qemu", _signal_every_qemu(signal.SIGKILL), takes_power=True),
    Fault(
        "qemu stopped",
        "qemu",
        _signal_every_qemu(signal.SIGSTOP),
        _signal_every_qemu(signal.SIGCONT),
        guests_wait=True,
        goes_on=ON_FILES,
    ),
    Fault("switched off by an admin", "people", _switch_all_off, takes_power=True),
    Fault("domain undefined", "people", _undefine_all, _define_all, goes_on=EVERY),
    Fault("image moved away", "people", _move_images_away, _move_images_back, guests_wait=True, may_fail=EVERY),
    Fault("leaf deleted", "people", _delete_leaves, leaves_end="gone"),
    Fault("leaf failed by hand", "people", _fail_leaves, leaves_end="failed with 1"),
    # Who began a step ends it, wherever the machine is said to be.
    Fault(
        "machine moved to a node", "people", _move_machines("node-99.lab.example"), _move_machines(""), goes_on=EVERY
    ),
    Fault("RAM disk full", "host", _fill_ram, _empty_ram, holds={Mode.SNAPSHOTTING: ("began save", "began freeze")}),
    Fault("retain full", "host", _fill_store, _empty_store, guests_wait=True, may_fail=EVERY),
    Fault("backup full", "host", _backup(write="ENOSPC"), _backup(), may_fail=frozenset({Mode.RETAINING})),
    Fault("backup EIO", "host", _backup(write="EIO", read="EIO"), _backup(), may_fail=AT_THE_BACKUP),
    Fault("backup failing fsync", "host", _backup(fsync="EIO"), _backup(), may_fail=frozenset({Mode.RETAINING})),
    Fault(
        "backup hanging",
        "host",
        _signal_backup(signal.SIGSTOP),
        _signal_backup(signal.SIGCONT),
        goes_on=WITH_LIBVIRT,
    ),
)
