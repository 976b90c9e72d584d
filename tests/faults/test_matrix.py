"""Every fault of the catalogue × every mode an agent works in, on real machines: a cell each.

The cells are made from the table of modes. One strike hits all modes at once, each on a machine of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import libvirt
import pytest

from lab.cluster import Lab, LabOptions
from lab.errors import LabError
from lab.hypervisor import NodeOptions
from lab.machines import MachineSpec
from lab.slapd import SlapdOptions
from tests.conftest import ClusterFactory
from tests.faults.belt import AT_WORK, HOLDS, Belt, doorstep, way
from tests.faults.catalogue import CATALOGUE, Fault
from tests.faults.faulty_filesystem import faulty_filesystem
from tests.faults.invariants import World
from tests.faults.strikes import Cell, strike
from tests.slapd.unreliable_wire import UnreliableWire
from vmkeep.contract.modes import Mode

SPEC = MachineSpec(period_ms=100)


def agent_settings(lab: Lab, wire: UnreliableWire, folder: Path) -> Path:
    """Those of the lab's node, over a wire, and less patient with libvirt and the directory."""
    [node] = lab.nodes
    text = lab.agent_settings(node).read_text().replace(lab.directory.uri, wire.uri)
    text = text.replace(
        "\n[directory]\n", "libvirt_seconds = 5\n\n[directory]\ntimeout_seconds = 2\nprobe_seconds = 2\n"
    )
    path = folder / "nodeagent.toml"
    path.write_text(text)
    return path


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
    """Images and retain directory lie on a filesystem of their own, the backup directory on one that fails as told."""
    folder = tmp_path_factory.mktemp("belt")
    with faulty_filesystem(tmp_path_factory.mktemp("backup") / "faulty") as backup:
        node = NodeOptions(store_mib=2048, backup=backup.folder)
        lab = cluster(LabOptions(nodes=1, machines=0, slapd=SlapdOptions(audit=True, synchronous=False), node=node))
        wire = UnreliableWire(Path(lab.directory.sockets) / "wire", lab.directory.socket)
        belt = Belt(lab, folder, agent_settings(lab, wire, folder), wire, backup)
        belt.fill(SPEC)
        belt.start_agent()
        yield (found := Matrix(belt, World(lab)))
        print("", *(cell for cells in found.cells.values() for cell in cells.values()), sep="\n")
        belt.end_second_agent()
        lab.down()
        wire.close()


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
