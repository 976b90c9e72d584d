"""Every method: machines that run, are paused or off, one disk and two, one filesystem and two, ext4 and XFS.

In each run every pair of these meets; `--all-methods` tries all combinations.
"""

import itertools
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lab import ticks
from lab.cluster import Lab, LabOptions
from lab.filesystems import is_known
from lab.hypervisor import NodeOptions
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.conftest import end
from tests.cluster.plain import Plain, files_below
from tests.cluster.test_restore import assert_cleared, definition, power, same_content
from tests.conftest import ClusterFactory
from vmkeep.contract.grouping import from_instant

DIMENSIONS = (
    ("ext4", "xfs"),
    ("same", "other"),
    ("save", "live", "disk"),
    ("running", "paused", "off"),
    (1, 2),
)
Combination = tuple[object, ...]


def pairs(combination: Combination) -> set[tuple[tuple[int, object], ...]]:
    return set(itertools.combinations(enumerate(combination), 2))


def every_pair() -> list[Combination]:
    """As few combinations as are needed for any two values to meet."""
    everything = list(itertools.product(*DIMENSIONS))
    left = set().union(*map(pairs, everything))
    chosen = []
    while left:
        chosen.append(max(everything, key=lambda one: len(pairs(one) & left)))
        left -= pairs(chosen[-1])
    return chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "combination" in metafunc.fixturenames:
        wanted = list(itertools.product(*DIMENSIONS)) if metafunc.config.getoption("--all-methods") else every_pair()
        wanted.sort(key=lambda one: (str(one[0]), str(one[1])))
        metafunc.parametrize("combination", wanted, ids=lambda one: "-".join(map(str, one)))


@pytest.fixture(scope="module")
def places(cluster: ClusterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Lab]]:
    """One lab at a time: filesystem of the images, backup directory on the same or another."""
    yield (labs := {})
    for lab in labs.values():
        lab.down()


@pytest.fixture
def lab_at(
    combination: Combination,
    places: dict[tuple[str, str], Lab],
    cluster: ClusterFactory,
    tmp_path_factory: pytest.TempPathFactory,
) -> Lab:
    kind, backup = str(combination[0]), str(combination[1])
    if not is_known(kind):
        pytest.skip(f"this kernel has no {kind}")
    if (kind, backup) not in places:
        while places:
            places.popitem()[1].down()
        elsewhere = tmp_path_factory.mktemp("elsewhere") / "backup" if backup == "other" else None
        options = NodeOptions(filesystem=kind, filesystem_mib=1536, backup=elsewhere)
        places[kind, backup] = cluster(LabOptions(nodes=1, machines=0, agents=True, node=options))
    return places[kind, backup]


def with_method(plain: Plain, machine: Machine, method: str, **more: str) -> None:
    plain.add_backup_subtree(machine.name)
    more["vmkeepMethod"] = method
    dn = plain.lab.tree.machine_plan(machine.name)
    plain.modify(dn, "add objectClass vmkeepPlan", *(f"add {name} {value}" for name, value in more.items()))


def assert_nothing_left(machine: Machine, leaf: str) -> None:
    """Flat chains at their own paths, and nothing of the backup beside them, in retain or on the RAM disk."""
    for disk in machine.disks:
        sets.assert_whole(disk)
        assert [path.name for path in disk.parent.iterdir() if leaf in path.name] == []
    assert [name for name in files_below(machine.node.retain) if leaf in name] == []
    assert [name for name in files_below(machine.node.ram) if leaf in name] == []


def test_a_machine_is_backed_up_and_restored(combination: Combination, lab_at: Lab, tmp_path: Path) -> None:
    _, _, method, state, disks = combination
    plain, counts = Plain(lab_at), state == "running"
    spec = MachineSpec(
        kind="bios" if state == "off" else "linux", state=str(state), disks=int(str(disks)), content_mib=1
    )
    machine = lab_at.add_machine(spec)
    with_method(plain, machine, str(method))
    if counts:
        lab_at.wait_for_count(machine.name, 30)
    before, described, qemu = power(machine), definition(machine), machine.node.qemu(machine.name)
    begun = datetime.now(UTC)
    originals = [] if counts else [Path(shutil.copy(disk, tmp_path / disk.name)) for disk in machine.disks]

    leaf = plain.back_up(machine.name)

    assert power(machine) == before
    assert definition(machine) == described
    assert_nothing_left(machine, leaf)
    used = "save" if state == "off" or (state, method) == ("paused", "live") else method
    assert plain.leaf(machine.name, leaf)["vmkeepMethod"] == [used]
    worth = "off" if state == "off" else "crash" if method == "disk" else "state"
    assert plain.leaf(machine.name, leaf)["vmkeepConsistency"] == [worth]
    instant = from_instant(plain.leaf(machine.name, leaf)["vmkeepInstant"][0])
    assert instant is not None
    assert begun < instant < datetime.now(UTC)
    if used != "save":
        assert machine.node.qemu(machine.name) == qemu, "it never stopped"
    folder = sets.directory_of(machine, leaf)
    sets.assert_digests(folder)
    assert (sets.manifest(folder)["method"], sets.manifest(folder)["consistency"]) == (used, worth)
    by_target = {file["target"]: folder / file["name"] for file in sets.manifest(folder)["files"] if file["target"]}
    images = [by_target[target] for target in machine.targets]
    for image in images:
        sets.assert_whole(image)
    if counts:
        assert_runs_from(lab_at, plain, machine, leaf, images, with_memory=method != "disk")
    else:
        assert all(same_content(image, original) for image, original in zip(images, originals, strict=True))
        plain.restore(machine.name, leaf)
        assert power(machine) == (1 if method == "disk" and state == "paused" else before)
        if power(machine) == before:
            assert all(same_content(disk, original) for disk, original in zip(machine.disks, originals, strict=True))
    assert definition(machine) == described
    assert_cleared(machine)
    plain.back_up(machine.name)
    end(machine)


def assert_runs_from(
    lab: Lab, plain: Plain, machine: Machine, leaf: str, images: list[Path], *, with_memory: bool
) -> None:
    """The disks are of one instant; restored, the counter goes on from there, and what is read is what was written."""
    at_instant = [ticks.newest_on_disk(image) for image in images]
    assert max(at_instant) - min(at_instant) <= 1, "all disks are of one instant"
    lab.wait_for_count(machine.name, 60)
    assert ticks.read_serial(machine.serial).missing == []
    offset = machine.serial.stat().st_size

    plain.restore(machine.name, leaf)

    lab_counts = until("counts after the restore", lambda: backwards(ticks.counts_since(machine.serial, offset)), 60)
    if with_memory:
        assert lab_counts[0] in (max(at_instant), max(at_instant) + 1), "memory and disk are of one instant"
    until("the guest to count on", lambda: len(backwards(ticks.counts_since(machine.serial, offset))) > 60, 60)
    assert " BAD" not in machine.serial.read_text(errors="replace")[offset:]


def backwards(counted: list[int]) -> list[int]:
    """What was counted from the first number on that is less than the one before it."""
    return next((counted[at + 1 :] for at, (one, two) in enumerate(itertools.pairwise(counted)) if two < one), [])
