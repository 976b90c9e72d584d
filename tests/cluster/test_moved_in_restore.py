"""A machine that is moved between the steps of its restore: the new node touches nothing, and says how to go on."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from lab.cluster import LabOptions
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.moving import Moving
from tests.cluster.plain import files_below
from tests.cluster.test_moved import assert_over_its_own_images, bring_home, where
from tests.conftest import ClusterFactory

STEPS = {
    "restore-small-files": "unretainedSmallFiles",
    "restore-large-files": "unretainedLargeFiles",
    "restore": "restored",
}


@pytest.fixture(scope="module")
def moving(cluster: ClusterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moving]:
    lab = cluster(LabOptions(nodes=2, machines=0))
    with Moving.between(lab, tmp_path_factory.mktemp("told"), looks_every=1.0) as moving:
        yield moving


@pytest.fixture(scope="module")
def small(moving: Moving) -> Machine:
    return moving.add(MachineSpec(kind="bios", content_mib=2))


@pytest.fixture
def machine(moving: Moving, small: Machine) -> Iterator[Machine]:
    """It runs on the old node; in the end on the new one, over its own images, with its data; nothing is left over."""
    bring_home(moving, small)
    before = sets.data_of(small)
    yield small
    assert where(moving, small) is moving.new
    assert_over_its_own_images(replace(small, node=moving.new))
    assert sets.data_of(small) == before
    moving.say(small, moving.old)
    until("nothing to be left in retain", lambda: not files_below(moving.old.retain), 20)


def moved_after(moving: Moving, machine: Machine, step: str) -> str:
    """A leaf whose restore has come so far on the old node, before the machine was moved."""
    leaf = moving.plain.back_up(machine.name)
    for edit, done in STEPS.items():
        moving.plain.edit_and_wait(edit, machine.name, leaf, done)
        if edit == step:
            break
    moving.migrate(machine, moving.old, moving.new)
    moving.say(machine, moving.new)
    return leaf


def refused(moving: Moving, machine: Machine, leaf: str, step: str) -> str:
    """What the new node says of the next step; the machine's image is the one it was."""
    inode = machine.disks[0].stat().st_ino
    moving.plain.edit(step, machine.name, leaf)
    entry = moving.plain.wait(machine.name, leaf, STEPS[step])
    assert entry["sstProvisioningReturnValue"] == ["37"], entry
    assert machine.disks[0].stat().st_ino == inode
    return entry["vmkeepMessage"][0]


def back_out(moving: Moving, machine: Machine, leaf: str) -> None:
    moving.plain.modify(
        moving.plain.leaf_dn(machine.name, leaf),
        "replace sstProvisioningMode finished",
        "replace sstProvisioningReturnValue 0",
    )


def test_a_restore_that_was_begun_elsewhere_is_refused_and_begun_anew_once_its_node_has_cleared_up(
    moving: Moving, machine: Machine
) -> None:
    begin_anew(moving, machine, "restore-small-files", "restore-large-files")


def test_nor_is_it_gone_on_with_where_all_its_files_lie_there(rare: None, moving: Moving, machine: Machine) -> None:
    begin_anew(moving, machine, "restore-large-files", "restore")


def begin_anew(moving: Moving, machine: Machine, before: str, step: str) -> None:
    leaf = moved_after(moving, machine, before)
    why = refused(moving, machine, leaf, step)
    assert f"{moving.new.name} holds nothing of this restore, {moving.old.name} began it" in why
    assert f"back out, and set it back once that has cleared {machine.name}/{leaf} in {moving.old.retain}" in why
    moving.say(machine, moving.old)
    back_out(moving, machine, leaf)
    until("the old node to clear up", lambda: not files_below(moving.old.retain), 20)
    moving.say(machine, moving.new)
    moving.plain.restore(machine.name, leaf)


def test_where_retain_is_not_shared_it_is_begun_anew_at_once(moving: Moving, machine: Machine) -> None:
    leaf = moved_after(moving, machine, "restore-small-files")
    moving.set_plan(machine, sstBackupRetainDirectory=f"file://{moving.new.retain}")
    with moving.hidden(moving.old.retain):
        refused(moving, machine, leaf, "restore-large-files")
        back_out(moving, machine, leaf)
        restored = moving.plain.restore(machine.name, leaf)
        assert restored["vmkeepSetNode"] == [moving.new.name], "who brought it says so"
        until("the new node to clear up", lambda: not files_below(moving.new.retain), 20)
    log = moving.old.folder / "log/nodeagent.log"
    until(f"{log} to tell what is left", lambda: "the machine may be another node's by now" in log.read_text(), 40)
    assert files_below(moving.old.retain), "it is told, and not removed by guess"
