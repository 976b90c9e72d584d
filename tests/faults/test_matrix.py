"""Every fault of the catalogue × every mode an agent works in, on real machines: a cell each.

The cells are made from the table of modes. One strike hits all modes at once, each on a machine of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import libvirt
import pytest

from lab.errors import LabError
from lab.machines import MachineSpec
from tests.conftest import ClusterFactory
from tests.faults.belt import AT_WORK, HOLDS, Belt, doorstep, way
from tests.faults.catalogue import CATALOGUE, Fault
from tests.faults.invariants import World
from tests.faults.stage import stage
from tests.faults.strikes import Cell, strike
from tests.faults.told_cells import table
from vmkeep.contract.modes import Mode

SPEC = MachineSpec(period_ms=250)


@dataclass
class Matrix:
    """A belt, and the cells that were seen on it."""

    belt: Belt
    world: World
    cells: dict[str, dict[Mode, Cell]] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)

    def cell(self, fault: Fault, mode: Mode) -> Cell:
        if fault.name not in self.cells and fault.name not in self.failures:
            self._strike(fault)
        if fault.name in self.failures:
            raise self.failures[fault.name]
        return self.cells[fault.name][mode]

    def _strike(self, fault: Fault) -> None:
        """Once for all modes; where it comes to nothing the next fault finds an agent that is not held."""
        try:
            self.cells[fault.name] = strike(self.belt, self.world, fault)
        except (LabError, AssertionError, libvirt.libvirtError, LookupError) as why:
            self.failures[fault.name] = why
            self.belt.release()
            fault.heal(self.belt)
            if self.belt.agent() is None:
                self.belt.start_agent()


@pytest.fixture(scope="module")
def matrix(cluster: ClusterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    with stage(tmp_path_factory.mktemp("stage"), cluster) as belt:
        belt.fill(SPEC)
        belt.start_agent()
        yield (found := Matrix(belt, World(belt.lab)))
        print("", *(cell for cells in found.cells.values() for cell in cells.values()), sep="\n")
        print("", table(found.cells, AT_WORK), sep="\n")


@pytest.mark.parametrize("mode", AT_WORK)
def test_every_mode_of_work_has_a_way_to_it_and_can_be_held(mode: Mode) -> None:
    assert HOLDS[mode]
    assert way(Mode.DELETED, doorstep(mode))


@pytest.mark.parametrize("mode", AT_WORK)
@pytest.mark.parametrize("fault", CATALOGUE, ids=lambda fault: fault.name)
def test_under_a_fault_the_work_ends_and_nothing_is_lost(fault: Fault, mode: Mode, matrix: Matrix) -> None:
    cell = matrix.cell(fault, mode)
    assert not cell.violations, "\n".join(cell.violations)
    assert cell.ended in ("well", fault.leaves_end) or (mode in fault.may_fail and cell.sentence), str(cell)
