"""Row `gap`: how long a guest stands still for a snapshot, seen from outside, against bare save and restore."""

import os
from collections.abc import Callable, Iterator
from functools import partial

from bench.alternating import in_turn
from bench.backups import Backups, backups_of
from bench.figures import Figure, ratios, spread
from bench.session import Session
from lab.cluster import Lab, LabOptions
from lab.hypervisor import NodeOptions
from lab.machines import Machine, MachineSpec
from lab.ticks import Follower
from vmkeep.contract.modes import Mode

_BAR = 1.10
_COUNTS = 30  # of the running guest before and after


def measure(session: Session) -> Iterator[Figure]:
    """One figure for each size of guest."""
    for mib in session.choose((128, 512, 1024), (128, 256)):
        session.say(f"gap: a guest of {mib} MiB")
        yield _of_guest(session, mib)


def _of_guest(session: Session, mib: int) -> Figure:
    filled = mib * 4 // 5 - 46  # with more, the guest's kernel has none left for itself
    options = LabOptions(
        machine=MachineSpec(memory_mib=mib, fill_mib=filled),
        node=NodeOptions(ram_disks={"ram": mib * 5 // 4 + 64}),
    )
    sizes: list[int] = []
    with Lab(session.folder / "lab", options) as lab, backups_of(lab) as backups:
        machine = next(iter(lab.machines.values()))
        ours, raw = in_turn(
            [partial(_snapshot, backups, machine), partial(_save_and_restore, lab, machine, sizes)], session.runs
        )
    return Figure(
        row="gap",
        measured=f"guest-visible gap of a snapshot, method save, {mib} MiB guest",
        amount=f"{mib} MiB guest, {filled} MiB of it filled, state file {sizes[-1] / (1 << 20):.0f} MiB",
        twin="virDomainSave + virDomainRestore on the same RAM disk",
        value=spread(ratios(ours, raw)),
        bar=_BAR,
        ours=spread(ours),
        raw=spread(raw),
    )


def _snapshot(backups: Backups, machine: Machine) -> float:
    leaf = backups.new_leaf(machine.name)
    gap = _gap(backups.lab, machine, lambda: backups.step(leaf.dn, Mode.SNAPSHOT))
    backups.finish(leaf.dn, Mode.MERGE, Mode.RETAIN)
    return gap


def _save_and_restore(lab: Lab, machine: Machine, sizes: list[int]) -> float:
    state = machine.node.ram / "raw.state"
    connection, domain = machine.node.connection(), lab.domain(machine.name)

    def there_and_back() -> None:
        domain.save(str(state))
        connection.restore(str(state))

    gap = _gap(lab, machine, there_and_back)
    sizes.append(state.stat().st_size)
    state.unlink()
    return gap


def _gap(lab: Lab, machine: Machine, act: Callable[[], object]) -> float:
    """The widest distance between two counts around something that stops the guest."""
    os.sync()
    with Follower(machine.serial) as follower:
        lab.wait_for_count(machine.name, more=_COUNTS)
        act()
        lab.wait_for_count(machine.name, more=_COUNTS)
        return follower.widest_gap()
