"""Has one set retained again and again: its files keep a second name, so that every run begins with the same bytes.

Used by the rows that measure retain; a snapshot and a merge for each run would take minutes and change nothing.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from bench.backups import Backups, backed_up, retained
from lab.machines import Machine
from vmkeep.contract.modes import Mode


@dataclass(frozen=True)
class RepeatedRetain:
    """One merged set. `held` keeps the second names, on the same filesystem."""

    backups: Backups
    machine: Machine
    dn: str
    held: Path

    @property
    def files(self) -> list[Path]:
        """The set's own files, without the notes beside them."""
        return sorted(path for path in self.held.iterdir() if not path.name.startswith("."))

    @property
    def size(self) -> int:
        """Bytes of the set that are not holes."""
        return sum(allocated(path) for path in self.files)

    def run(self) -> float:
        """Put the set back into retain, and have it retained; the seconds that took."""
        self.clear_backup()
        shutil.rmtree(retained(self.machine, self.dn), ignore_errors=True)
        link_all(self.held, retained(self.machine, self.dn))
        self.backups.move(self.backups.read(self.dn), Mode.MERGED)
        os.sync()
        return self.backups.step(self.dn, Mode.RETAIN)

    def clear_backup(self) -> None:
        """Remove the set that the run before left."""
        shutil.rmtree(backed_up(self.machine, self.dn), ignore_errors=True)


def merged_set(backups: Backups, machine: Machine) -> RepeatedRetain:
    """A set that has been snapshotted and merged."""
    leaf = backups.new_leaf(machine.name)
    backups.step(leaf.dn, Mode.SNAPSHOT)
    backups.step(leaf.dn, Mode.MERGE)
    held = machine.node.folder / "held" / machine.name
    link_all(retained(machine, leaf.dn), held)
    return RepeatedRetain(backups, machine, leaf.dn, held)


def link_all(source: Path, target: Path) -> None:
    """Give every file of a folder a second name in another."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).hardlink_to(path)


def allocated(path: Path) -> int:
    """What a file takes on its filesystem, holes left out."""
    return path.stat().st_blocks * 512
