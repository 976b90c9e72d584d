"""Rows `gap`, `gap-live`, `gap-disk`: how long a guest stands still for a snapshot, against bare save and restore.

Seen from outside: the widest distance between two of the guest's counts, by the host's clock.
"""

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
from vmkeep.contract.methods import Method
from vmkeep.contract.modes import Mode

_BARS = {Method.SAVE: 1.10, Method.LIVE: 0.25, Method.DISK: 0.10}
_COUNTS = 30  # of the running guest before and after


def measure(session: Session, method: Method = Method.SAVE) -> Iterator[Figure]:
    """One figure for each size of guest."""
    for mib in session.choose((128, 512, 1024), (128, 256)):
        session.say(f"gap: a guest of {mib} MiB, method {method}")
        yield _of_guest(session, mib, method)


def _of_guest(session: Session, mib: int, method: Method) -> Figure:
    filled = mib * 4 // 5 - 46  # with more, the guest's kernel has none left for itself
    options = LabOptions(
        machine=MachineSpec(memory_mib=mib, fill_mib=filled, period_ms=10),
        node=NodeOptions(ram_disks={"ram": mib * 5 // 4 + 64}),
    )
    sizes: list[int] = []
    with Lab(session.folder / "lab", options) as lab, backups_of(lab) as backups:
        machine = next(iter(lab.machines.values()))
        measures = [partial(snapshot_gap, backups, machine, method), partial(save_and_restore, lab, machine, sizes)]
        ours, raw = in_turn(measures, session.runs)
    return Figure(
        row="gap" if method is Method.SAVE else f"gap-{method}",
        measured=f"guest-visible gap of a snapshot, method {method}, {mib} MiB guest",
        amount=f"{mib} MiB guest, {filled} MiB of it filled, state file {sizes[-1] / (1 << 20):.0f} MiB",
        twin="virDomainSave + virDomainRestore on the same RAM disk",
        value=spread(ratios(ours, raw)),
        bar=_BARS[method],
        ours=spread(ours),
        raw=spread(raw),
    )


def snapshot_gap(backups: Backups, machine: Machine, method: Method) -> float:
    """The seconds a guest stood still for a snapshot; the backup is made to its end."""
    dn = backups.begin(machine.name, method)
    gap = _widest(backups.lab, machine, lambda: backups.snapshot(dn, method))
    backups.finish(dn, Mode.MERGE, Mode.RETAIN)
    return gap


def save_and_restore(
    lab: Lab, machine: Machine, sizes: list[int], between: Callable[[], object] = lambda: None
) -> float:
    """The same for bare save and restore, with something done between them; `sizes` gets the state file's."""
    state = machine.node.ram / "raw.state"
    connection, domain = machine.node.connection(), lab.domain(machine.name)

    def there_and_back() -> None:
        domain.save(str(state))
        between()
        connection.restore(str(state))

    gap = _widest(lab, machine, there_and_back)
    sizes.append(state.stat().st_size)
    state.unlink()
    return gap


def _widest(lab: Lab, machine: Machine, act: Callable[[], object]) -> float:
    """The widest distance between two counts around something that stops the guest."""
    os.sync()
    with Follower(machine.serial) as follower:
        lab.wait_for_count(machine.name, more=_COUNTS)
        act()
        lab.wait_for_count(machine.name, more=_COUNTS)
        return follower.widest_gap()
