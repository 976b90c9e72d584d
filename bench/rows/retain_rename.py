"""Row `retain-rename`: retain on the same filesystem must take the same time for a small set and a large one."""

import os
import shutil
import time
from collections.abc import Iterator
from functools import partial

from bench.alternating import Measure, in_turn
from bench.backups import Backups, backups_of
from bench.figures import Figure, Spread, ratios, spread
from bench.repeated_retain import RepeatedRetain, link_all, merged_set
from bench.session import Session
from lab.cluster import Lab, LabOptions
from lab.machines import MachineSpec

_DISKS = 4
_MOST_NOISE = 1.5  # on a machine noisier than this the figure is held to this all the same
_RUNS_EACH = 3  # a run is short, and there are more of them against the noise


def measure(session: Session) -> Iterator[Figure]:
    """One figure: the large set against the small one. The twins, rename and fsync, are told beside it."""
    sizes = session.choose((64, 4096), (16, 512))
    session.say(f"retain-rename: sets of {sizes[0]} and {sizes[1]} MiB")
    with Lab(session.folder / "lab", LabOptions(machines=0)) as lab, backups_of(lab) as backups:
        small, large = (_set(backups, mib) for mib in sizes)
        measures: list[Measure] = [small.run, large.run, partial(_rename, small), partial(_rename, large)]
        samples = in_turn(measures, session.runs * _RUNS_EACH)
    ours_small, ours_large, raw_small, raw_large = map(spread, samples)
    yield Figure(
        row="retain-rename",
        measured=f"retain on the same filesystem, {sizes[1]} MiB against {sizes[0]} MiB",
        amount=f"sets of {sizes[0]} and {sizes[1]} MiB, {_DISKS} disks each",
        twin="the same of the small set; noise: its slowest run against its median, 1.5 at most",
        value=spread(ratios(samples[1], samples[0])),
        bar=noise(ours_small),
        ours=ours_large,
        raw=ours_small,
        note=f"rename and fsync of the folders: {_ms(raw_small)} small, {_ms(raw_large)} large",
    )


def noise(same: Spread) -> float:
    """How much slower a run of the very same work comes out now and then: what counts as the same time."""
    return min(same.most / same.median, _MOST_NOISE)


def _set(backups: Backups, mib: int) -> RepeatedRetain:
    spec = MachineSpec(kind="bios", disks=_DISKS, disk_mib=mib // _DISKS + 64, content_mib=mib // _DISKS)
    machine = backups.lab.add_machine(spec)
    return merged_set(backups, machine)


def _rename(repeated: RepeatedRetain) -> float:
    place = repeated.machine.node.folder / "renamed" / repeated.machine.name
    source, target = place / "from", place / "to"
    link_all(repeated.held, source)
    target.mkdir()
    os.sync()
    begun = time.monotonic()
    for path in sorted(source.iterdir()):
        path.rename(target / path.name)
    for folder in (target, source):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)
    taken = time.monotonic() - begun
    shutil.rmtree(place)
    return taken


def _ms(times: Spread) -> str:
    return f"{times.median * 1000:.1f} ms ({times.least * 1000:.1f}–{times.most * 1000:.1f})"
