"""A machine and one good set of it, and where the set's files lie."""

from dataclasses import dataclass
from pathlib import Path

from lab.cluster import Lab
from lab.machines import Machine
from tests.cluster import sets
from tests.cluster.plain import Plain


@dataclass(frozen=True)
class BackedUp:
    """A machine and its set."""

    lab: Lab
    plain: Plain
    machine: Machine
    leaf: str

    @property
    def folder(self) -> Path:
        return sets.directory_of(self.machine, self.leaf)

    @property
    def retain(self) -> Path:
        return self.machine.node.retain / self.folder.relative_to(self.machine.node.backup)
