"""Row `write-latency`: what a guest's own synced writes take while it is backed up, by method and phase.

The guest writes a sector to its disk every 10 ms, synced, and says how long that took by its own clock. That clock
stands still with the guest, so the longest silence seen from outside stands beside it.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event

from bench.alternating import in_turn
from bench.backups import Backups, backups_of
from bench.latencies import Latency, Window, latency
from bench.session import Session
from lab.cluster import Lab, LabOptions
from lab.filesystems import own_filesystem
from lab.hypervisor import NodeOptions
from lab.machines import Machine, MachineSpec
from lab.ticks import Follower, write_latencies
from vmkeep.contract.methods import Method
from vmkeep.contract.modes import Mode

_METHODS = (Method.SAVE, Method.LIVE, Method.DISK)
_PHASES = ("undisturbed", "snapshot", "merge", "retain")
_UNDISTURBED = 3.0  # seconds

Windows = dict[tuple[Method, str], list[Window]]


def measure(session: Session) -> Iterator[Latency]:
    """For each method and phase a line; with the backup directory on the same filesystem and on another."""
    mib = session.choose(1024, 256)
    session.say(f"write-latency: a disk of {mib} MiB, the same filesystem")
    yield from _lines(_measured(session, mib, None), "same filesystem")
    session.say(f"write-latency: a disk of {mib} MiB, another filesystem")
    with own_filesystem(session.folder / "other", 3 * mib + 256) as other:
        yield from _lines(_measured(session, mib, other.folder / "backup"), "another filesystem")


def _lines(windows: Windows, where: str) -> Iterator[Latency]:
    for method in _METHODS:
        for phase in _PHASES:
            yield latency(method.value, where, phase, windows[method, phase])


def _measured(session: Session, mib: int, backup: Path | None) -> Windows:
    windows: Windows = defaultdict(list)
    spec = MachineSpec(disk_mib=mib + 64, content_mib=mib, period_ms=10)
    options = LabOptions(machine=spec, node=NodeOptions(backup=backup))
    with Lab(session.folder / "lab", options) as lab, backups_of(lab) as backups:
        machine = next(iter(lab.machines.values()))
        in_turn([partial(_backed_up, backups, machine, method, windows) for method in _METHODS], session.runs, 0)
    return windows


def _backed_up(backups: Backups, machine: Machine, method: Method, windows: Windows) -> float:
    dn = backups.begin(machine.name, method)
    os.sync()
    steps: tuple[Callable[[], object], ...] = (
        lambda: Event().wait(_UNDISTURBED),
        lambda: backups.snapshot(dn, method),
        lambda: backups.step(dn, Mode.MERGE),
        lambda: backups.step(dn, Mode.RETAIN),
    )
    begun = time.monotonic()
    for phase, step in zip(_PHASES, steps, strict=True):
        windows[method, phase].append(_during(backups, machine, step))
    backups.finish(dn)
    return time.monotonic() - begun


def _during(backups: Backups, machine: Machine, act: Callable[[], object]) -> Window:
    """The writes from the one before something began to the one after it ended."""
    with Follower(machine.serial) as follower:
        first = backups.lab.wait_for_count(machine.name)
        act()
        last = backups.lab.wait_for_count(machine.name)
    taken = write_latencies(machine.serial, first, last)
    return Window(list(taken.values()), [moment for seq, moment in follower.arrivals if first <= seq <= last])
