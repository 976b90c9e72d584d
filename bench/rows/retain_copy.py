"""Row `retain-copy`: carrying a set to another filesystem, digests, holes and fsync included, against cp and fsync."""

import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.alternating import in_turn
from bench.backups import backed_up, backups_of
from bench.figures import Figure, ratios, spread
from bench.pages import warm
from bench.repeated_retain import RepeatedRetain, allocated, merged_set
from bench.session import Session
from lab import programs
from lab.cluster import Lab, LabOptions
from lab.errors import LabError
from lab.filesystems import own_filesystem
from lab.hypervisor import NodeOptions
from lab.machines import MachineSpec

_BAR = 1.15
_MORE = 1.01  # a copy that takes more room than this has lost its holes


def measure(session: Session) -> Iterator[Figure]:
    """One figure."""
    mib = session.choose(1024, 256)
    session.say(f"retain-copy: a set of {mib} MiB")
    with own_filesystem(session.folder / "other", 3 * mib + 256) as other:
        spec = MachineSpec(kind="bios", disk_mib=mib + 64, content_mib=mib)
        options = LabOptions(machine=spec, node=NodeOptions(backup=other.folder / "backup"))
        with Lab(session.folder / "lab", options) as lab, backups_of(lab) as backups:
            repeated = merged_set(backups, next(iter(lab.machines.values())))
            copies = other.folder / "copies"
            ours, raw = in_turn([partial(_retain, repeated), partial(_copy, repeated, copies)], session.runs)
            size = repeated.size
    yield Figure(
        row="retain-copy",
        measured="retain to another filesystem: digest, holes kept, fsynced",
        amount=f"a set of {size >> 20} MiB in the page cache, to ext4 on a loop device",
        twin="cp --sparse=always, sync FILE…",
        value=spread(ratios(ours, raw)),
        bar=_BAR,
        ours=spread(ours),
        raw=spread(raw),
    )


def _retain(repeated: RepeatedRetain) -> float:
    _prepare(repeated)
    taken = repeated.run()
    _check_holes(repeated, backed_up(repeated.machine, repeated.dn))
    repeated.clear_backup()
    return taken


def _copy(repeated: RepeatedRetain, copies: Path) -> float:
    _prepare(repeated)
    copies.mkdir()
    os.sync()
    begun = time.monotonic()
    programs.run(["cp", "--sparse=always", *repeated.files, copies], limit=600)
    programs.run(["sync", *sorted(copies.iterdir()), copies], limit=600)
    taken = time.monotonic() - begun
    _check_holes(repeated, copies)
    shutil.rmtree(copies)
    return taken


def _prepare(repeated: RepeatedRetain) -> None:
    for path in repeated.files:
        warm(path)


def _check_holes(repeated: RepeatedRetain, copy: Path) -> None:
    """A copy of other bytes, or with its holes filled, would be other work."""
    for path in repeated.files:
        found = next(copy.glob(f"{path.name}*"))
        if found.stat().st_size != path.stat().st_size or allocated(found) > allocated(path) * _MORE + (1 << 20):
            raise LabError(f"{found} is not the copy of {path} that was to be measured")
