"""Row `clone`: backups where the filesystem clones, against `cp --reflink=always` and the same work around it by hand.

Method save clones while the machine stands still, so its gap is looked at; method live while it runs, so its merge is.
"""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import libvirt
from blake3 import blake3

from bench.alternating import in_turn
from bench.backups import STEP_LIMIT, Backups, backups_of
from bench.figures import Figure, ratios, spread
from bench.pages import warm
from bench.rows.gap import save_and_restore, snapshot_gap
from bench.session import Session
from lab import programs
from lab.cluster import Lab, LabOptions
from lab.errors import LabError
from lab.filesystems import is_known, own_filesystem
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from vmkeep.contract.methods import Method
from vmkeep.contract.modes import Mode

_GAP_BAR, _MERGE_BAR = 1.10, 1.15
_AT_ONCE = 1 << 20
_SNAPSHOT = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA


def measure(session: Session) -> Iterator[Figure]:
    """Two figures, on XFS."""
    if not is_known("xfs"):
        raise LabError("this kernel has no XFS, nothing can be cloned")
    mib = session.choose(1024, 256)
    with own_filesystem(session.folder / "xfs", 3 * mib + 512, "xfs") as place:
        session.say(f"clone: a disk of {mib} MiB, the gap of method save")
        yield _gap(session, place.folder / "lab", mib)
        session.say(f"clone: a disk of {mib} MiB, the merge of method live")
        yield _merge(session, place.folder / "lab", mib)


def _gap(session: Session, folder: Path, mib: int) -> Figure:
    spec = MachineSpec(disk_mib=mib + 64, content_mib=mib, period_ms=10)
    with Lab(folder, LabOptions(machine=spec)) as lab, backups_of(lab) as backups:
        machine = next(iter(lab.machines.values()))
        raw_once = partial(save_and_restore, lab, machine, [], partial(_cloned, machine))
        ours, raw = in_turn([partial(snapshot_gap, backups, machine, Method.SAVE), raw_once], session.runs)
    return Figure(
        row="clone",
        measured="guest-visible gap of a snapshot, method save, disks cloned meanwhile, XFS",
        amount=f"{spec.memory} MiB guest, a disk of {mib} MiB",
        twin="virDomainSave, cp --reflink=always, sync, virDomainRestore",
        value=spread(ratios(ours, raw)),
        bar=_GAP_BAR,
        ours=spread(ours),
        raw=spread(raw),
    )


def _merge(session: Session, folder: Path, mib: int) -> Figure:
    spec = MachineSpec(kind="bios", disk_mib=mib + 64, content_mib=mib)
    with Lab(folder, LabOptions(machine=spec)) as lab, backups_of(lab) as backups:
        machine = next(iter(lab.machines.values()))
        ours, raw = in_turn([partial(_merged, backups, machine), partial(_by_hand, lab, machine)], session.runs)
        bare = in_turn([partial(_cloned, machine)], session.runs)[0]
    return Figure(
        row="clone",
        measured="merge of method live: disk cloned, digest taken, overlay committed back, XFS",
        amount=f"a disk of {mib} MiB, in the page cache",
        twin="cp --reflink=always, sync, one read with BLAKE3, virDomainBlockCommit and pivot",
        value=spread(ratios(ours, raw)),
        bar=_MERGE_BAR,
        ours=spread(ours),
        raw=spread(raw),
        note=f"cp --reflink=always and sync alone: {1000 * spread(bare).median:.1f} ms",
    )


def _merged(backups: Backups, machine: Machine) -> float:
    dn = backups.begin(machine.name, Method.LIVE)
    backups.snapshot(dn, Method.LIVE)
    programs.run(["sync"], limit=300)
    warm(machine.disks[0])
    taken = backups.step(dn, Mode.MERGE)
    backups.finish(dn, Mode.RETAIN)
    return taken


def _by_hand(lab: Lab, machine: Machine) -> float:
    domain, overlay = lab.domain(machine.name), machine.disks[0].with_suffix(".overlay")
    disk = f"<disk name='vda' snapshot='external'><source file='{overlay}'/></disk>"
    domain.snapshotCreateXML(f"<domainsnapshot><disks>{disk}</disks></domainsnapshot>", _SNAPSHOT)
    programs.run(["sync"], limit=300)
    warm(machine.disks[0])
    begun = time.monotonic()
    _cloned(machine, digest=True)
    _commit(domain)
    taken = time.monotonic() - begun
    overlay.unlink()
    return taken


def _cloned(machine: Machine, *, digest: bool = False) -> float:
    clone = machine.node.retain / "by-hand"
    begun = time.monotonic()
    programs.run(["cp", "--reflink=always", machine.disks[0], clone], limit=60)
    programs.run(["sync", clone, clone.parent], limit=60)
    if digest:
        digester = blake3()
        with clone.open("rb", buffering=0) as file:
            while data := file.read(_AT_ONCE):
                digester.update(data)
    taken = time.monotonic() - begun
    clone.unlink()
    return taken


def _commit(domain: Any) -> None:
    domain.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    until("the end of a block commit", lambda: _is_ready(domain), STEP_LIMIT, step=0.002)
    domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)


def _is_ready(domain: Any) -> bool:
    job = domain.blockJobInfo("vda", 0)
    return bool(job) and job["cur"] == job["end"] and "ready='yes'" in domain.XMLDesc()
