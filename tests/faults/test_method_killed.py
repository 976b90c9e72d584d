"""A real agent is killed around every line of a backup by the methods live and disk, and by clones; or a step refuses.

The guest counts all the time: whatever is killed, it never misses a number and never goes back, its images lie at
their own paths with nothing above or below them, and the set that comes of it holds one instant.
"""

import itertools
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import libvirt
import pytest

from lab import ticks
from lab.cluster import Lab, LabOptions
from lab.filesystems import is_known
from lab.hypervisor import NodeOptions
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.counting import assert_runs_over_its_own_images
from tests.cluster.plain import Plain, files_below, timestamp
from tests.conftest import ClusterFactory
from tests.faults.test_agent_killed import SEED, agent
from tests.faults.test_agent_killed import STEPS as SAVING
from tests.faults.test_restore_killed import lines

BEFORE, AFTER = ("leftovers", "directories", "entry"), ("description", "state", "making")
FREEZING = (*BEFORE, "freeze", *AFTER)
CLONING = (*BEFORE, "save", "clone", "load", "go", *AFTER)
THAWING = ("frozen", "copy vda", "copy vdb", "commit vda", "commit vdb")
PROVING = ("merge vda", "merge vdb")
CARRYING = ("directory", "xml", "ldif", "state", "vda", "vdb", "manifest", "clear")
# How the data goes: what the plan says, the filesystem of the images, the steps of snapshot and merge.
WAYS = {
    "live": ("live", "ext4", FREEZING, THAWING),
    "disk": ("disk", "ext4", FREEZING, THAWING),
    "clones": ("save", "xfs", CLONING, PROVING),
    "save": ("save", "ext4", SAVING, PROVING),
}
ALIKE = (("disk", "merge"), ("disk", "retain"))  # as with live
KILLED = ("live", "disk", "clones")  # save by itself has its own test
ROUND = (("snapshot", "snapshotted"), ("merge", "merged"), ("retain", "retained"))
UNDO_KILLS = (None, 1, 3, 5)
# Where the instant is, where an overlay is written back, where data is carried; --all-faults plays every one.
OFTEN = (
    ("live", "snapshot", 4 * FREEZING.index("freeze") + 2),
    ("live", "merge", 4 * THAWING.index("commit vda") + 2),
    ("clones", "snapshot", 4 * CLONING.index("load") + 1),
)
UNDONE_OFTEN = (
    ("live", "merge", "commit vda", 5),
    ("clones", "snapshot", "load", 5),
)


def steps_of(way: str, mode: str) -> tuple[str, ...]:
    return {"snapshot": WAYS[way][2], "merge": WAYS[way][3], "retain": CARRYING}[mode]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    everything = metafunc.config.getoption("--all-faults")
    if "boundary" in metafunc.fixturenames:
        all_kills = [
            (way, mode, boundary)
            for way, (mode, _) in itertools.product(KILLED, ROUND)
            for boundary in range(lines(steps_of(way, mode)))
            if boundary % 4 or not boundary  # the others lie where nothing is done since the one before
            if (way, mode) not in ALIKE
        ]
        metafunc.parametrize(("way", "mode", "boundary"), all_kills if everything else OFTEN)
    if metafunc.function is test_memory_is_not_used_once_somebody_ran_the_machine_from_its_disks:
        metafunc.parametrize("way", ("clones", "save") if everything else ("clones",))
    if "refused" in metafunc.fixturenames:
        all_refusals = [
            (way, mode, step, kill)
            for way, mode in itertools.product(KILLED, ("snapshot", "merge"))
            for step, kill in itertools.product(steps_of(way, mode), UNDO_KILLS)
            if (way, mode) not in ALIKE
        ]
        metafunc.parametrize(("way", "mode", "refused", "kill_in_undo"), all_refusals if everything else UNDONE_OFTEN)


@dataclass(frozen=True)
class Counting:
    """A machine that counts, and its backups."""

    lab: Lab
    plain: Plain
    machine: Machine

    def begin(self) -> str:
        leaf = timestamp()
        self.plain.add_leaf(self.machine.name, leaf)
        return leaf

    def step(self, leaf: str, mode: str, done: str, boundary: int | None = None) -> None:
        """Ask, be killed at a boundary and somewhere in recovery, go on."""
        self.plain.ask(self.machine.name, leaf, mode)
        if boundary is not None:
            assert agent(self.machine, boundary) == -signal.SIGKILL, (mode, boundary)
            agent(self.machine, random.Random(SEED + boundary).randrange(0, 8))
        assert agent(self.machine) == 0
        entry = self.plain.leaf(self.machine.name, leaf)
        assert entry["sstProvisioningMode"] == [done], entry.get("vmkeepMessage")
        assert entry["sstProvisioningReturnValue"] == ["0"], entry

    def back_up(self) -> None:
        leaf = self.begin()
        for mode, done in ROUND:
            self.step(leaf, mode, done)
        self.assert_set(leaf)

    def sentence(self, leaf: str, mode: str) -> str:
        """What the leaf says of a step that failed."""
        entry = self.plain.leaf(self.machine.name, leaf)
        assert entry["sstProvisioningMode"] == [mode], entry
        assert entry["sstProvisioningReturnValue"] != ["0"], entry
        return entry["vmkeepMessage"][0]

    def assert_runs_on_its_own_images(self) -> None:
        """It counted on all the time, and nothing is left of what it wrote to meanwhile."""
        machine = self.machine
        assert_runs_over_its_own_images(self.lab, machine)
        folder = machine.disks[0].parent
        assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in machine.disks)
        assert files_below(machine.node.ram) == []
        assert files_below(machine.node.state / "journal") == []

    def assert_set(self, leaf: str) -> None:
        """The set is whole and of one instant, and retain is empty."""
        folder = sets.directory_of(self.machine, leaf)
        sets.assert_digests(folder)
        images = [folder / file["name"] for file in sets.manifest(folder)["files"] if file["role"] == "disk"]
        newest = [ticks.newest_on_disk(image) for image in images]
        assert len(newest) == len(self.machine.disks)
        assert min(newest) > 0
        assert max(newest) - min(newest) <= 1, "all disks are of one instant"
        assert files_below(self.machine.node.retain) == []


@pytest.fixture(scope="module")
def nodes(cluster: ClusterFactory) -> Iterator[dict[str, Counting]]:
    """Filesystem of the images → a machine there; the backup directory lies on another."""
    yield (counting := {})
    for each in counting.values():
        each.lab.down()


@pytest.fixture
def counting(
    way: str, nodes: dict[str, Counting], cluster: ClusterFactory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Counting]:
    method, kind, *_ = WAYS[way]
    if not is_known(kind):
        pytest.skip(f"this kernel has no {kind}")
    if kind not in nodes:
        elsewhere = tmp_path_factory.mktemp("elsewhere") / "backup"
        options = NodeOptions(filesystem=kind, filesystem_mib=2048, backup=elsewhere)
        lab = cluster(LabOptions(nodes=1, machines=0, node=options))
        machine = lab.add_machine(MachineSpec(disks=2))
        nodes[kind] = Counting(lab, Plain(lab), machine)
        nodes[kind].plain.add_backup_subtree(machine.name)
        nodes[kind].plain.modify(lab.tree.machine_plan(machine.name), "add objectClass vmkeepPlan")
        lab.wait_for_count(machine.name, 30)
    else:
        nodes[kind].machine.node.domain(nodes[kind].machine.name).resume()
    found = nodes[kind]
    found.plain.modify(found.lab.tree.machine_plan(found.machine.name), f"replace vmkeepMethod {method}")
    yield found
    found.machine.node.domain(found.machine.name).suspend()  # the next test's guest shall have the processor


def test_killed_around_a_line_and_again_in_recovery_the_backup_is_made(
    way: str, mode: str, boundary: int, counting: Counting
) -> None:
    leaf = counting.begin()
    for asked, done in ROUND:
        counting.step(leaf, asked, done, boundary if asked == mode else None)
    assert counting.plain.leaf(counting.machine.name, leaf)["vmkeepMethod"] == [WAYS[way][0]]
    counting.assert_runs_on_its_own_images()
    counting.assert_set(leaf)


def test_refused_after_a_step_and_killed_while_taking_back_the_machine_is_whole(
    way: str, mode: str, refused: str, kill_in_undo: int | None, counting: Counting
) -> None:
    leaf = counting.begin()
    if mode == "merge":
        counting.step(leaf, "snapshot", "snapshotted")
    counting.plain.ask(counting.machine.name, leaf, mode)
    if kill_in_undo is not None:
        lines_before = 2 * steps_of(way, mode).index(refused) + 1
        assert agent(counting.machine, 2 * lines_before + kill_in_undo, refused) in (-signal.SIGKILL, 0)
    assert agent(counting.machine, refuse=refused) == 0
    said = counting.sentence(leaf, {"snapshot": "snapshotting", "merge": "merging"}[mode])
    assert "refused by the test" in said
    assert "could not be put back" not in said
    counting.assert_runs_on_its_own_images()
    if mode == "snapshot":
        assert files_below(counting.machine.node.retain) == []
    else:
        merge_again(counting, leaf, is_possible=refused not in ("frozen", "copy vda"))
    counting.back_up()
    counting.assert_runs_on_its_own_images()


def merge_again(counting: Counting, leaf: str, *, is_possible: bool) -> None:
    """A set whose copies were made before the failure is complete; without them its instant is gone, and so is it."""
    name = counting.machine.name
    if not is_possible:
        assert files_below(counting.machine.node.retain) == []
        assert not sets.directory_of(counting.machine, leaf).exists()
    counting.plain.modify(counting.plain.leaf_dn(name, leaf), "replace sstProvisioningReturnValue 0")
    if is_possible:
        for mode, done in ROUND[1:]:
            counting.step(leaf, mode, done)
        counting.assert_set(leaf)
        return
    counting.plain.ask(name, leaf, "merge")
    assert agent(counting.machine) == 0
    said = counting.sentence(leaf, "merging")
    assert f"{name}: the backup {leaf} cannot be finished" in said
    assert "back it up again" in said


def test_memory_is_not_used_once_somebody_ran_the_machine_from_its_disks(way: str, counting: Counting) -> None:
    """Saved, the agent dies; somebody starts the machine, which writes, and pulls its plug; the agent is back."""
    machine, leaf = counting.machine, counting.begin()
    counting.plain.ask(machine.name, leaf, "snapshot")
    after_save = 4 * (WAYS[way][2].index("save") + 1) - 1
    assert agent(machine, after_save) == -signal.SIGKILL
    domain = machine.node.domain(machine.name)
    assert domain.state()[0] == libvirt.VIR_DOMAIN_SHUTOFF
    domain.create()
    newest = until("the guest to boot", lambda: booted(machine), 60)
    counting.lab.wait_for_count(machine.name, 100)
    domain.destroy()
    assert agent(machine) == 0
    assert "started by somebody else" in counting.sentence(leaf, "snapshotting")
    assert domain.state()[0] == libvirt.VIR_DOMAIN_SHUTOFF
    assert files_below(machine.node.retain) == []
    assert files_below(machine.node.ram) == []
    domain.create()
    until("the guest to boot again", lambda: booted(machine) > newest, 60)
    counting.lab.wait_for_count(machine.name, 60)
    assert ticks.read_serial(machine.serial).complaints == ()


def booted(machine: Machine) -> int:
    """The newest record that the guest found on its disks when it booted last; 0 before it did."""
    lines = machine.serial.read_text(errors="replace").replace("\r", "").splitlines()
    return max((int(line.split()[1]) for line in lines if line.startswith("B ")), default=0)
