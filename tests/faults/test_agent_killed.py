"""A real agent on a real guest is killed before and after every side effect, and again while it recovers.

Afterwards an agent that lives must bring the machine back with nothing lost: the guest's own count has no gap, its
pattern reads as written, its images are whole, no file is left over, and the leaf says the truth.
"""

import random
import signal
import subprocess
import sys
from collections.abc import Iterator

import libvirt
import pytest

from lab import ticks
from lab.cluster import Lab, LabOptions
from lab.machines import Machine, MachineSpec
from tests.cluster import sets
from tests.cluster.plain import Plain, files_below, timestamp
from tests.conftest import ClusterFactory

STEPS = ("leftovers", "directories", "entry", "overlays", "save", "swap", "resume", "description", "state", "making")
# "began" and "ended" a step and one result, each with a before and an after.
BOUNDARIES = range(2 * (2 * len(STEPS) + 1))
# Where the machine stands still every fourth boundary is tried, elsewhere every sixteenth; --all-faults tries all.
# Without servers all are tried, twice (tests/crash_states).
STANDS_STILL = range(4 * STEPS.index("save"), 4 * (STEPS.index("resume") + 1) + 1)
UNDO_KILLS = (None, 1, 4, 7)
SEED = 20261121


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    everything = metafunc.config.getoption("--all-faults")
    if "boundary" in metafunc.fixturenames:
        metafunc.parametrize(
            "boundary", [b for b in BOUNDARIES if everything or b % (4 if b in STANDS_STILL else 16) == 1]
        )
    if "refused" in metafunc.fixturenames:
        pairs = [(step, kill) for step in STEPS for kill in UNDO_KILLS]
        often = [(step, kill) for number, (step, kill) in enumerate(pairs) if everything or number % 8 == 0]
        metafunc.parametrize(("refused", "kill_in_undo"), often)


@pytest.fixture(scope="module")
def quiet(cluster: ClusterFactory) -> Iterator[Lab]:
    """One node without an agent of its own."""
    lab = cluster(LabOptions(nodes=1, machines=0))
    yield lab
    lab.down()


@pytest.fixture(scope="module")
def machine(quiet: Lab) -> Machine:
    return quiet.add_machine(MachineSpec(disks=2))


def agent(machine: Machine, boundary: int | str = -1, refuse: str = "-") -> int:
    settings = machine.node.folder / "nodeagent.toml"
    argv = [sys.executable, "-m", "tests.faults.killed_agent", str(boundary), refuse, str(settings)]
    return subprocess.run(argv, timeout=120, check=False, capture_output=True).returncode


def assert_alive_and_whole(lab: Lab, machine: Machine, leaf: str) -> None:
    assert machine.node.domain(machine.name).state()[0] == libvirt.VIR_DOMAIN_RUNNING
    lab.wait_for_count(machine.name, 60, 60)
    log = ticks.read_serial(machine.serial)
    assert log.missing == []
    assert log.complaints == ()
    assert [name for name in files_below(machine.node.ram) if leaf in name] == []
    assert [path.name for path in machine.disks[0].parent.iterdir() if leaf in path.name] == []
    assert files_below(machine.node.state / "journal") == []


def finish(plain: Plain, machine: Machine, leaf: str) -> None:
    for mode, done in (("merge", "merged"), ("retain", "retained")):
        plain.ask(machine.name, leaf, mode)
        assert agent(machine) == 0
        entry = plain.leaf(machine.name, leaf)
        assert entry["sstProvisioningMode"] == [done], entry
    for disk in machine.disks:
        sets.assert_whole(disk)
    sets.assert_digests(sets.directory_of(machine, leaf))
    assert files_below(machine.node.retain) == []


def test_killed_at_a_boundary_and_again_in_recovery_the_backup_is_made(
    boundary: int, quiet: Lab, machine: Machine
) -> None:
    plain, leaf = Plain(quiet), timestamp()
    plain.add_leaf(machine.name, leaf)
    plain.ask(machine.name, leaf, "snapshot")
    assert agent(machine, boundary) == -signal.SIGKILL
    agent(machine, random.Random(SEED + boundary).randrange(0, 8))
    assert agent(machine) == 0
    entry = plain.leaf(machine.name, leaf)
    assert entry["sstProvisioningMode"] == ["snapshotted"], entry["vmkeepMessage"]
    assert_alive_and_whole(quiet, machine, leaf)
    finish(plain, machine, leaf)


def test_refused_after_any_step_and_killed_while_taking_it_back_the_machine_is_as_it_was(
    refused: str, kill_in_undo: int | None, quiet: Lab, machine: Machine
) -> None:
    plain, leaf = Plain(quiet), timestamp()
    plain.add_leaf(machine.name, leaf)
    plain.ask(machine.name, leaf, "snapshot")
    if kill_in_undo is not None:
        lines_before = 2 * STEPS.index(refused) + 1
        assert agent(machine, 2 * lines_before + kill_in_undo, refused) in (-signal.SIGKILL, 0)
    assert agent(machine, refuse=refused) == 0
    entry = plain.leaf(machine.name, leaf)
    assert entry["sstProvisioningMode"] == ["snapshotting"], entry
    assert "refused by the test" in entry["vmkeepMessage"][0]
    assert "could not be put back" not in entry["vmkeepMessage"][0]
    assert_alive_and_whole(quiet, machine, leaf)
    for disk in machine.disks:
        sets.assert_whole(disk)
    assert files_below(machine.node.retain) == []
