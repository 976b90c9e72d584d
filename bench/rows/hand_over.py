"""Row `hand-over`: from a mode written by one side to its claim by the other, against one claim by the same client.

A real agent watches, reads and claims; a merge of an image that is whole already costs it little else. The clock starts
when the writer begins to write, and stops when a watch on a connection of its own tells of the claim: what writing and
telling take is counted too.
"""

import random
import time
from collections.abc import Iterator
from functools import partial
from threading import Event

from bench.alternating import in_turn
from bench.backups import Backups, backups_of
from bench.figures import Figure, Spread, percentile, spread
from bench.session import Session
from lab.cluster import Lab, LabOptions
from lab.errors import LabError
from lab.machines import MachineSpec
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode

_BARS = ((50, 0.020), (99, 0.150))
_PACE = 0.1  # seconds; hand-overs come at any moment of the agent's life
_LIMIT = 30.0


def measure(session: Session) -> Iterator[Figure]:
    """Two figures of the same samples: p50 and p99."""
    times = session.choose(300, 100)
    session.say(f"hand-over: {times} times")
    options = LabOptions(machine=MachineSpec(kind="bios"), machines=2)
    with Lab(session.folder / "lab", options) as lab, backups_of(lab) as backups:
        handed, idle = (backups.new_leaf(machine).dn for machine in lab.machines)
        backups.step(handed, Mode.SNAPSHOT)
        backups.step(handed, Mode.MERGE)
        measures = [partial(_hand_over, backups, handed), partial(_claim, backups, idle)]
        ours, raw = in_turn(measures, times, warm_up=5)
    for percent, bar in _BARS:
        yield _told(ours, raw, percent, bar)


def _told(ours: list[float], raw: list[float], percent: int, bar: float) -> Figure:
    ms = [1000 * sample for sample in ours]
    return Figure(
        row="hand-over",
        measured=f"hand-over: mode written → claimed by the agent, p{percent}",
        amount=f"{len(ours)} hand-overs, one after another, slapd with full sync",
        twin=f"one claim by the same client, p{percent}",
        value=Spread(percentile(ms, percent), min(ms), max(ms), len(ms)),
        bar=bar * 1000,
        unit="ms",
        ours=spread(ms),
        raw=_with_percentile([1000 * sample for sample in raw], percent),
        sample_unit="ms",
        note=f"{percentile(ours, percent) / percentile(raw, percent):.1f} × its twin",
    )


def _with_percentile(samples: list[float], percent: int) -> Spread:
    return Spread(percentile(samples, percent), min(samples), max(samples), len(samples))


def _hand_over(backups: Backups, dn: str) -> float:
    """Ask for a merge; the time until the change after our own was told of, which is the claim."""
    Event().wait(random.uniform(0, _PACE))
    _drain(backups)
    leaf = backups.read(dn)
    begun = time.monotonic()
    backups.move(leaf, Mode.MERGE)
    _asked, claimed, _done = (_change(backups) for _ in range(3))
    if backups.read(dn).mode is not Mode.MERGED or backups.next_change(limit=0.02) is not None:
        raise LabError(f"{dn} changed otherwise than asked, claimed and done: it cannot be told which was the claim")
    return claimed - begun


def _claim(backups: Backups, dn: str) -> float:
    """One claim of a leaf that nobody else acts on."""
    leaf: Leaf = backups.read(dn)
    other = Mode.INITIALIZE if leaf.mode is Mode.INITIALIZED else Mode.INITIALIZED
    begun = time.monotonic()
    backups.move(leaf, other)
    return time.monotonic() - begun


def _change(backups: Backups) -> float:
    moment = backups.next_change(limit=_LIMIT)
    if moment is None:
        raise LabError(f"no change of a leaf was told of within {_LIMIT:g} s; see the agent's log")
    return moment


def _drain(backups: Backups) -> None:
    while backups.next_change(limit=0.01) is not None:
        pass
