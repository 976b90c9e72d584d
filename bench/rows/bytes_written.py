"""Rows `bytes-written…`: what a whole backup writes, per byte of disk backed up, counted where it cannot be hidden.

Images, retain and backup directory, and with them the agent's journal, libvirt's logs and slapd's database, lie on
filesystems of their own; the figure is what reached their devices, journals of the filesystems included. The RAM disk
is memory. Method save moves the image aside and streams it back, so to another filesystem it writes it twice; live and
disk write it once, wherever to; and what is cloned is not written at all.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.alternating import in_turn
from bench.backups import Backups, backups_of
from bench.figures import Figure, ratios, spread
from bench.repeated_retain import allocated
from bench.session import Session
from lab import programs
from lab.cluster import Lab, LabOptions
from lab.errors import LabError
from lab.filesystems import Filesystem, is_known, own_filesystem
from lab.hypervisor import NodeOptions
from lab.machines import Machine, MachineSpec
from vmkeep.contract.methods import Method
from vmkeep.contract.modes import Mode

_MIB = 1 << 20


@dataclass(frozen=True)
class _Way:
    """How a disk gets into its set, and at most how often its bytes are written on the way."""

    method: Method
    other: bool  # the backup directory lies on another filesystem
    bar: float
    kind: str = "ext4"

    @property
    def words(self) -> str:
        """The way for the table."""
        return f"method {self.method}, {self.kind}, {'another' if self.other else 'the same'} filesystem"


def measure(session: Session) -> Iterator[Figure]:
    """Method save: to the same filesystem and to another."""
    yield from _figures(session, _Way(Method.SAVE, False, 1.02), _Way(Method.SAVE, True, 2.02))


def measure_live(session: Session) -> Iterator[Figure]:
    """Method live: the same."""
    yield from _figures(session, _Way(Method.LIVE, False, 1.02), _Way(Method.LIVE, True, 1.02))


def measure_disk(session: Session) -> Iterator[Figure]:
    """Method disk: the same."""
    yield from _figures(session, _Way(Method.DISK, False, 1.02), _Way(Method.DISK, True, 1.02))


def measure_clones(session: Session) -> Iterator[Figure]:
    """Every method where the filesystem clones; save to another one too, because then the clone is all it spares."""
    if not is_known("xfs"):
        raise LabError("this kernel has no XFS, nothing can be cloned")
    same = [_Way(method, False, 0.02, "xfs") for method in (Method.SAVE, Method.LIVE, Method.DISK)]
    yield from _figures(session, *same, _Way(Method.SAVE, True, 1.02, "xfs"))


def _figures(session: Session, *ways: _Way) -> Iterator[Figure]:
    mib = session.choose(1024, 256)
    for way in ways:
        session.say(f"bytes-written: a disk of {mib} MiB, {way.words}")
        yield _figure(session, mib, way)


def _figure(session: Session, mib: int, way: _Way) -> Figure:
    with ExitStack() as stack:
        places = [stack.enter_context(own_filesystem(session.folder / "one", 4 * mib + 512, way.kind))]
        if way.other:
            places.append(stack.enter_context(own_filesystem(session.folder / "two", 3 * mib + 256)))
        backup = places[1].folder / "backup" if way.other else None
        spec = MachineSpec(kind="bios", disk_mib=mib + 64, content_mib=mib)
        lab = stack.enter_context(
            Lab(places[0].folder / "lab", LabOptions(machine=spec, node=NodeOptions(backup=backup)))
        )
        backups = stack.enter_context(backups_of(lab))
        machine = next(iter(lab.machines.values()))
        copy = partial(_copied, machine, places, places[-1].folder / "copy")
        ours, raw = in_turn([partial(_backed_up, backups, machine, places, way.method), copy], session.runs)
        size = allocated(machine.disks[0])
    return _told(ours, raw, size, way)


def _told(ours: Sequence[float], raw: Sequence[float], size: int, way: _Way) -> Figure:
    """Both in MiB that reached a device."""
    per_byte = ratios(ours, [size / _MIB] * len(ours))
    copied = spread(ratios(raw, [size / _MIB] * len(raw)))
    return Figure(
        row="bytes-written",
        measured=f"bytes written per byte of disk, {way.words}",
        amount=f"a disk of {size / _MIB:.0f} MiB; all that reached {'both devices' if way.other else 'the device'}",
        twin="the bytes of the disk image",
        value=spread(per_byte),
        bar=way.bar,
        ours=spread(ours),
        raw=spread(raw),
        sample_unit="MiB",
        note=f"raw: one cp and fsync of the same image writes {copied.median:.4f} per byte by the same count",
    )


def _backed_up(backups: Backups, machine: Machine, places: Sequence[Filesystem], method: Method) -> float:
    dn = backups.begin(machine.name, method)
    before = _written(places)
    backups.snapshot(dn, method)
    backups.finish(dn, Mode.MERGE, Mode.RETAIN)
    return _written(places) - before


def _copied(machine: Machine, places: Sequence[Filesystem], copy: Path) -> float:
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    before = _written(places)
    programs.run(["cp", "--sparse=always", "--reflink=never", machine.disks[0], copy], limit=600)
    programs.run(["sync", *copy.iterdir(), copy], limit=600)
    written = _written(places) - before
    shutil.rmtree(copy)
    return written


def _written(places: Sequence[Filesystem]) -> float:
    """MiB on all devices so far."""
    return sum(place.written() for place in places) / _MIB
