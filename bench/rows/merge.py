"""Row `merge`: making the live image whole, against a bare block pull over the very same chain."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.alternating import in_turn
from bench.backups import STEP_LIMIT, Backups, backups_of, retained
from bench.figures import Figure, ratios, spread
from bench.pages import warm
from bench.session import Session
from lab import programs
from lab.cluster import Lab, LabOptions
from lab.errors import LabError
from lab.filesystems import own_filesystem
from lab.hypervisor import NodeOptions
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from vmkeep.contract.modes import Mode

_BAR = 1.05


def measure(session: Session) -> Iterator[Figure]:
    """Once with the digest taken meanwhile (the set will be renamed), once without (it will be copied)."""
    mib = session.choose(1024, 256)
    session.say(f"merge: {mib} MiB, backup directory on the same filesystem")
    yield _figure(session, mib, None)
    session.say(f"merge: {mib} MiB, backup directory on another filesystem")
    with own_filesystem(session.folder / "other", 3 * mib + 256) as other:
        yield _figure(session, mib, other.folder / "backup")


def _figure(session: Session, mib: int, backup: Path | None) -> Figure:
    spec = MachineSpec(kind="bios", disk_mib=mib + 64, content_mib=mib)
    options = LabOptions(machine=spec, node=NodeOptions(backup=backup))
    with Lab(session.folder / "lab", options) as lab, backups_of(lab) as backups:
        machine = next(iter(lab.machines.values()))
        ours, raw = in_turn([partial(_merge, backups, machine), partial(_pull, backups, machine)], session.runs)
    where = "another filesystem" if backup else "the same filesystem (digest taken meanwhile)"
    return Figure(
        row="merge",
        measured=f"merge, backup directory on {where}",
        amount=f"{mib} MiB of random content, in the page cache",
        twin="virDomainBlockPull over the chain a snapshot left",
        value=spread(ratios(ours, raw)),
        bar=_BAR,
        ours=spread(ours),
        raw=spread(raw),
    )


def _merge(backups: Backups, machine: Machine) -> float:
    dn = _snapshotted(backups, machine)
    taken = backups.step(dn, Mode.MERGE)
    backups.finish(dn, Mode.RETAIN)
    return taken


def _pull(backups: Backups, machine: Machine) -> float:
    dn = _snapshotted(backups, machine)
    domain = backups.lab.domain(machine.name)
    begun = time.monotonic()
    domain.blockPull("vda", 0, 0)
    until("the end of a block pull", lambda: not domain.blockJobInfo("vda", 0), STEP_LIMIT, step=0.005)
    taken = time.monotonic() - begun
    if "backing file" in programs.run(["qemu-img", "info", "-U", "-f", "qcow2", machine.disks[0]]):
        raise LabError(f"the bare block pull left {machine.disks[0]} over its backing file")
    backups.finish(dn, Mode.MERGE, Mode.RETAIN)
    return taken


def _snapshotted(backups: Backups, machine: Machine) -> str:
    leaf = backups.new_leaf(machine.name)
    backups.step(leaf.dn, Mode.SNAPSHOT)
    programs.run(["sync"], limit=300)
    warm(retained(machine, leaf.dn) / machine.disks[0].name)
    return leaf.dn
