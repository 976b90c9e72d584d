"""Row `bytes-written`: what a whole backup writes, per byte of disk backed up, counted where it cannot be hidden.

Images, retain and backup directory, and with them the agent's journal, libvirt's logs and slapd's database, lie on
filesystems of their own; the figure is what reached their devices, journals of the filesystems included. The RAM disk
is memory.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.alternating import in_turn
from bench.backups import Backups, backups_of
from bench.figures import Figure, ratios, spread
from bench.repeated_retain import allocated
from bench.session import Session
from lab import programs
from lab.cluster import Lab, LabOptions
from lab.filesystems import Filesystem, own_filesystem
from lab.hypervisor import NodeOptions
from lab.machines import Machine, MachineSpec
from vmkeep.contract.modes import Mode

_MIB = 1 << 20


def measure(session: Session) -> Iterator[Figure]:
    """On the same filesystem the merge alone writes the disk; to another, retain writes it once more."""
    mib = session.choose(1024, 256)
    session.say(f"bytes-written: a disk of {mib} MiB, the same filesystem")
    yield _figure(session, mib, other=False)
    session.say(f"bytes-written: a disk of {mib} MiB, another filesystem")
    yield _figure(session, mib, other=True)


def _figure(session: Session, mib: int, *, other: bool) -> Figure:
    with ExitStack() as stack:
        places = [stack.enter_context(own_filesystem(session.folder / "one", 4 * mib + 512))]
        if other:
            places.append(stack.enter_context(own_filesystem(session.folder / "two", 3 * mib + 256)))
        backup = places[1].folder / "backup" if other else None
        spec = MachineSpec(kind="bios", disk_mib=mib + 64, content_mib=mib)
        lab = stack.enter_context(
            Lab(places[0].folder / "lab", LabOptions(machine=spec, node=NodeOptions(backup=backup)))
        )
        backups = stack.enter_context(backups_of(lab))
        machine = next(iter(lab.machines.values()))
        copy = partial(_copied, machine, places, places[-1].folder / "copy")
        ours, raw = in_turn([partial(_backed_up, backups, machine, places), copy], session.runs)
        size = allocated(machine.disks[0])
    return _told(ours, raw, size, other=other)


def _told(ours: Sequence[float], raw: Sequence[float], size: int, *, other: bool) -> Figure:
    """Both in MiB that reached a device."""
    per_byte = ratios(ours, [size / _MIB] * len(ours))
    copied = spread(ratios(raw, [size / _MIB] * len(raw)))
    return Figure(
        row="bytes-written",
        measured=f"bytes written per byte of disk, method save, {'another' if other else 'the same'} filesystem",
        amount=f"a disk of {size / _MIB:.0f} MiB; all that reached {'both devices' if other else 'the device'}",
        twin="the bytes of the disk image",
        value=spread(per_byte),
        bar=2.02 if other else 1.02,
        ours=spread(ours),
        raw=spread(raw),
        sample_unit="MiB",
        note=f"raw: one cp and fsync of the same image writes {copied.median:.4f} per byte by the same count",
    )


def _backed_up(backups: Backups, machine: Machine, places: Sequence[Filesystem]) -> float:
    leaf = backups.new_leaf(machine.name)
    before = _written(places)
    backups.finish(leaf.dn, Mode.SNAPSHOT, Mode.MERGE, Mode.RETAIN)
    return _written(places) - before


def _copied(machine: Machine, places: Sequence[Filesystem], copy: Path) -> float:
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    before = _written(places)
    programs.run(["cp", "--sparse=always", machine.disks[0], copy], limit=600)
    programs.run(["sync", *copy.iterdir(), copy], limit=600)
    written = _written(places) - before
    shutil.rmtree(copy)
    return written


def _written(places: Sequence[Filesystem]) -> float:
    """MiB on all devices so far."""
    return sum(place.written() for place in places) / _MIB
