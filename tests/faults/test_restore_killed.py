"""A real agent is killed around every line of a restore, and again while it recovers; or the host refuses a step.

Afterwards an agent that lives ends it well: the guest runs on from the instant of its set, or from where it was, and
never with a memory that is older than its disks.
"""

import itertools
import json
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from lab import ticks
from lab.cluster import LabOptions
from lab.machines import Machine, MachineSpec
from tests.cluster import sets
from tests.cluster.backed_up import BackedUp
from tests.cluster.plain import Plain, files_below, timestamp
from tests.conftest import ClusterFactory
from tests.faults.test_agent_killed import SEED, agent

SMALL = ("note", "directory", "description", "entry", "conflicts", "report")
LARGE = ("state", "vda", "vdb", "images")
RESTORE = ("aside", "stop", "place", "define", "load", "go")


def lines(steps: tuple[str, ...]) -> int:
    """Boundaries of an undisturbed run: two a line, two lines a step and the result."""
    return 2 * (2 * len(steps) + 1)


# Some rounds always, seeded and around the machine's standstill; --all-faults plays every one.
OFTEN = (4 * RESTORE.index("stop") + 2, 4 * RESTORE.index("place") + 2, 4 * RESTORE.index("load") + 2)
UNDONE_OFTEN = (("place", 3), ("load", 5))
UNDO_KILLS = (None, 1, 3, 5, 7, 9)
REMOVALS_OFTEN, DELETIONS_OFTEN = (0, 4), (1, 3, 6)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    everything = metafunc.config.getoption("--all-faults")
    if "boundary" in metafunc.fixturenames:
        metafunc.parametrize("boundary", range(lines(RESTORE)) if everything else OFTEN)
    if "refused" in metafunc.fixturenames:
        pairs = list(itertools.product(RESTORE, UNDO_KILLS)) if everything else UNDONE_OFTEN
        metafunc.parametrize(("refused", "kill_in_undo"), pairs)
    if "removal" in metafunc.fixturenames:
        metafunc.parametrize("removal", range(6) if everything else REMOVALS_OFTEN)
    if "deletion_line" in metafunc.fixturenames:
        metafunc.parametrize("deletion_line", range(10) if everything else DELETIONS_OFTEN)


@dataclass(frozen=True)
class Kept(BackedUp):
    """A machine that counts, and a set of it."""

    @property
    def at_instant(self) -> int:
        """The newest record on the set's disk."""
        files = sets.manifest(self.folder)["files"]
        name = next(file["name"] for file in files if file["role"] == "disk" and file["target"] == "vda")
        return ticks.newest_on_disk(self.folder / name)

    def counts_from(self, offset: int) -> list[int]:
        return ticks.counts_since(self.machine.serial, offset)

    def ask(self, mode: str) -> None:
        self.plain.ask(self.machine.name, self.leaf, mode)

    def entry(self) -> dict[str, list[str]]:
        return self.plain.leaf(self.machine.name, self.leaf)

    def step(self, mode: str, done: str, boundary: int | None = None) -> None:
        """Ask, be killed at a boundary and somewhere in recovery, go on."""
        self.ask(mode)
        if boundary is not None:
            assert agent(self.machine, boundary) == -signal.SIGKILL, (mode, boundary)
            agent(self.machine, random.Random(SEED + boundary).randrange(0, 8))
        assert agent(self.machine) == 0
        entry = self.entry()
        assert entry["sstProvisioningMode"] == [done], entry
        assert entry["sstProvisioningReturnValue"] == ["0"], entry

    def back_out(self) -> None:
        self.plain.modify(self.plain.leaf_dn(self.machine.name, self.leaf), "replace sstProvisioningReturnValue 0")
        self.plain.finish(self.machine.name, self.leaf)

    def state(self) -> tuple[object, ...]:
        """What a restore that is taken back leaves as it was."""
        domain = self.machine.node.domain(self.machine.name)
        return domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), [disk.stat().st_ino for disk in self.machine.disks]

    def assert_clean(self) -> None:
        node = self.machine.node
        assert files_below(node.state / "journal") == []
        assert files_below(node.state / "unretained") == []
        assert [path for path in files_below(node.retain) if f"/{self.machine.name}/" in path] == []
        assert files_below(node.ram) == []
        assert [path.name for path in self.machine.disks[0].parent.iterdir() if ".partial" in path.name] == []


def back_up(plain: Plain, machine: Machine) -> str:
    leaf = timestamp()
    plain.add_leaf(machine.name, leaf)
    for mode in ("snapshot", "merge", "retain"):
        plain.ask(machine.name, leaf, mode)
        assert agent(machine) == 0
    entry = plain.leaf(machine.name, leaf)
    assert entry["sstProvisioningMode"] == ["retained"], entry.get("vmkeepMessage")
    plain.finish(machine.name, leaf)
    return leaf


@pytest.fixture(scope="module")
def kept(cluster: ClusterFactory) -> Iterator[Kept]:
    lab = cluster(LabOptions(nodes=1, machines=0))
    machine = lab.add_machine(MachineSpec(disks=2))
    plain = Plain(lab)
    plain.add_backup_subtree(machine.name, sstBackupNumberOfIterations="90")
    lab.wait_for_count(machine.name, 30)
    yield Kept(lab, plain, machine, back_up(plain, machine))
    lab.down()


def steps_between(counts: list[int]) -> list[tuple[int, int]]:
    """Where the guest did not simply count on."""
    return [(before, after) for before, after in itertools.pairwise(counts) if after != before + 1]


def test_killed_around_a_line_of_each_step_and_again_in_recovery_the_machine_is_back(
    boundary: int, kept: Kept, request: pytest.FixtureRequest
) -> None:
    kept.lab.wait_for_count(kept.machine.name, 30)
    offset = kept.machine.serial.stat().st_size
    kept.step("unretainSmallFiles", "unretainedSmallFiles", boundary % lines(SMALL))
    kept.step("unretainLargeFiles", "unretainedLargeFiles", boundary % lines(LARGE))
    kept.step("restore", "restored", boundary)
    kept.lab.wait_for_count(kept.machine.name, 30)
    jumps = steps_between(kept.counts_from(offset))
    assert len(jumps) == 1, "it went back once, and lost nothing before or after"
    assert jumps[0][1] in (kept.at_instant, kept.at_instant + 1), "memory and disk are of one instant"
    assert ticks.read_serial(kept.machine.serial).complaints == ()
    for disk in kept.machine.disks:
        sets.assert_whole(disk)
    kept.plain.finish(kept.machine.name, kept.leaf)
    assert agent(kept.machine) == 0
    kept.assert_clean()
    sets.assert_digests(kept.folder)
    if boundary == OFTEN[0] or request.config.getoption("--all-faults"):
        sets.assert_digests(sets.directory_of(kept.machine, back_up(kept.plain, kept.machine)))


def test_refused_after_a_step_and_killed_while_taking_it_back_the_machine_is_as_it_was(
    refused: str, kill_in_undo: int | None, kept: Kept
) -> None:
    kept.lab.wait_for_count(kept.machine.name, 10)
    before, offset = kept.state(), kept.machine.serial.stat().st_size
    kept.step("unretainSmallFiles", "unretainedSmallFiles")
    kept.step("unretainLargeFiles", "unretainedLargeFiles")
    kept.ask("restore")
    if kill_in_undo is not None:
        lines_before = 2 * RESTORE.index(refused) + 1
        assert agent(kept.machine, 2 * lines_before + kill_in_undo, refused) in (-signal.SIGKILL, 0)
    assert agent(kept.machine, refuse=refused) == 0
    entry = kept.entry()
    assert entry["sstProvisioningMode"] == ["restoring"], entry
    assert entry["sstProvisioningReturnValue"] != ["0"], entry
    assert "refused by the test" in entry["vmkeepMessage"][0]
    assert "could not be put back" not in entry["vmkeepMessage"][0]
    kept.lab.wait_for_count(kept.machine.name, 30)
    assert kept.state() == before
    seen = steps_between(kept.counts_from(offset))
    if refused == "go":  # the restored guest ran for a moment: back to the set, and forth to where it was
        assert len(seen) in (0, 2), seen
        assert all(after == first + 1 for (first, _), (_, after) in itertools.pairwise(seen)), seen
    else:
        assert seen == [], "its memory went on from where it was"
    assert ticks.read_serial(kept.machine.serial).complaints == ()
    kept.back_out()
    assert agent(kept.machine) == 0
    kept.assert_clean()
    sets.assert_digests(kept.folder)


def test_backed_out_and_killed_while_clearing_up_retain_is_empty_in_the_end(removal: int, kept: Kept) -> None:
    before = kept.state()
    kept.step("unretainSmallFiles", "unretainedSmallFiles")
    kept.step("unretainLargeFiles", "unretainedLargeFiles")
    kept.back_out()
    assert agent(kept.machine, f"removal{removal}") == -signal.SIGKILL
    assert files_below(kept.machine.node.state / "unretained") != []
    assert agent(kept.machine) == 0
    kept.assert_clean()
    assert kept.state() == before
    sets.assert_digests(kept.folder)


def test_a_deletion_killed_around_a_line_removes_that_backup_and_no_other(deletion_line: int, kept: Kept) -> None:
    doomed = f"202001{deletion_line + 1:02}T000000Z"
    folder = copied_set(kept.folder, doomed)
    kept.plain.add_leaf(kept.machine.name, doomed, "finished")
    kept.plain.ask(kept.machine.name, doomed, "delete")
    assert agent(kept.machine, deletion_line) == -signal.SIGKILL
    assert agent(kept.machine) == 0
    entry = kept.plain.leaf(kept.machine.name, doomed)
    assert entry["sstProvisioningMode"] == ["deleted"], entry
    assert not folder.exists()
    kept.assert_clean()
    sets.assert_digests(kept.folder)
    kept.plain.delete_tree(kept.plain.leaf_dn(kept.machine.name, doomed))


def copied_set(folder: Path, leaf: str) -> Path:
    """The same set under another name."""
    copy = folder.with_name(leaf)
    copy.mkdir()
    for path in folder.iterdir():
        shutil.copy(path, copy / path.name.replace(folder.name, leaf))
    manifest = copy / f"manifest.json.{leaf}"
    told = json.loads(manifest.read_text().replace(folder.name, leaf))
    manifest.write_text(json.dumps(told))
    return copy
