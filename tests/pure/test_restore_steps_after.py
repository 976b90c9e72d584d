"""What follows a restore: clearing up and deleting, killed between any two removals, and what must never be removed."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from nodeagent.host.errors import HostFailure
from nodeagent.journal import Journals, Outcome
from nodeagent.operations.aside import note_restored
from nodeagent.operations.cleaning import clean_up
from nodeagent.operations.deletion import delete
from nodeagent.operations.deletion_survey import survey_deletion
from nodeagent.operations.restore import restore
from nodeagent.operations.restore_survey import _refuse_kept
from nodeagent.runner import Patience, Runner
from nodeagent.steps import Facts, Step
from nodeagent.work import _wait_for_others, clean_up_after_restore
from tests.pure.restored_world import LEAF, MACHINE, Killed, Scene, World, counted, made, old
from tests.pure.test_restore_steps import run_killed
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode

RUNS = Scene(2, 2, firmware=True, old_firmware=True)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def restored(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run_killed(world, monkeypatch)
    world.host.unretained.note(world.order)
    note_restored(world.order, world.host)
    world.faults.watch = lambda: None  # from here on the old bytes may go


def test_directories_that_are_made_for_the_firmware_let_qemu_and_swtpm_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """They run as users of their own, and a machine undefined or made anew has no such directory."""
    with made(Scene(1, 1, firmware=True)) as world:
        world.nvram.parent.rmdir()
        journal = run_killed(world, monkeypatch)
        assert journal.record.result is not None
        assert journal.record.result.code == 0
        assert world.nvram.read_bytes() == b"new nvram"
        assert world.nvram.parent.stat().st_mode & 0o777 == 0o711


def not_put_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore that failed, with images that cannot be put back."""
    world.host.unretained.note(world.order)

    def stuck(_facts: Facts) -> Facts:
        raise HostFailure("stuck")

    def plan() -> tuple[Any, ...]:
        steps = restore(world.order, world.host)
        return tuple(step.undone_by(stuck) if step.name == "place" else step for step in steps)

    world.hypervisor.failing.add("restore the set")
    journal = Journals(world.folder / "journal").create(world.order)
    for _ in range(5):
        try:
            Runner(journal, lambda: 1.0, Patience(0.0, 3)).run(plan())
        except TryLater:
            continue
    assert journal.record.result is not None
    assert "could not be put back" in journal.record.result.sentence


@pytest.mark.parametrize("keep_old", [False, True])
def test_clearing_up_killed_between_any_two_removals_ends_the_same(
    keep_old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kill in range(60):
        with made(RUNS) as world:
            restored(world, monkeypatch)
            world.faults.count, world.faults.kill_at = 0, kill
            with counted(world.faults, monkeypatch):
                try:
                    clean_up(world.order, world.host, keep_old=keep_old)
                except Killed:
                    left = files_below(world.folder / "retain")
                    assert world.host.unretained.all() or not left, "the note leads here again"
            world.faults.dead = False
            assert clean_up(world.order, world.host, keep_old=keep_old) is not keep_old
            if keep_old:
                assert {"vda", "vdb", "vm.state", "vm.xml", "nvram"} <= set(files_below(world.before))
                assert clean_up(world.order, world.host, keep_old=False), "when the wish is taken away"
            assert files_below(world.folder / "retain") == []
            assert world.host.unretained.all() == []
            assert world.path("vda").read_bytes().startswith(b"new vda")


@pytest.mark.parametrize("keep_old", [False, True])
def test_what_could_not_be_put_back_is_never_removed_however_the_leaf_ends(
    keep_old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(RUNS) as world:
        not_put_back(world, monkeypatch)
        assert not clean_up(world.order, world.host, keep_old=keep_old)
        assert (world.before / "vda").read_bytes().startswith(old("vda"))
        assert b'"memory": "old"' in (world.before / "vm.state").read_bytes()


def test_a_restore_over_what_could_not_be_put_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with made(RUNS) as world:
        _refuse_kept(world.order, world.host)
        not_put_back(world, monkeypatch)
        with pytest.raises(Refused, match="all there is of it") as refused:
            _refuse_kept(world.order, world.host)
        assert refused.value.code == 46


def deletion(world: World) -> Any:
    directory = world.folder / "backup/vm-persistent/p" / MACHINE / LEAF
    update = {"mode": Mode.DELETING, "restoring": world.order.set.model_copy(update={"set_directory": str(directory)})}
    return world.order.model_copy(update=update)


def test_a_deletion_killed_at_any_touch_removes_this_backup_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    kill, is_over = 0, False
    while not is_over:
        with made(Scene(1, 1)) as world:
            order, journals = deletion(world), Journals(world.folder / "journal")
            directory = Path(order.set.set_directory)
            other = directory.parent / "20250101T000000Z"
            for folder in (directory, other):
                folder.mkdir(parents=True)
                for name in ("vm.state", "vda.qcow2", "manifest.json"):
                    (folder / f"{name}.{folder.name}").write_bytes(b"x")
            journals.create(order)
            world.faults.kill_at, is_over = kill, True
            for _ in range(2):
                journal = journals.find(MACHINE, LEAF, Mode.DELETING)
                assert journal is not None
                try:
                    with counted(world.faults, monkeypatch):
                        outcome = Runner(journal, lambda: 1.0, Patience(0.0, 3)).run(delete(order, world.host))
                except Killed:
                    world.faults.kill_at, world.faults.dead, is_over = None, False, False
                    manifest = directory / f"manifest.json.{LEAF}"
                    assert not manifest.exists() or len(files_below(directory)) == 3, "half a set is none"
            assert outcome.code == 0, (kill, outcome)
            assert not directory.exists()
            assert len(files_below(other)) == 3
            assert not world.retain.exists()
            assert world.path("vda").read_bytes().startswith(old("vda"))
        kill += 1
    assert kill > 20


def test_a_deletion_leaves_what_a_restore_replaced_and_was_asked_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    with made(RUNS) as world:
        restored(world, monkeypatch)
        order = deletion(world)
        journal = Journals(world.folder / "journal").create(order)
        assert Runner(journal, lambda: 1.0, Patience(0.0, 3)).run(delete(order, world.host)).code == 0
        assert (world.before / "vda").read_bytes().startswith(old("vda"))


@pytest.mark.parametrize(
    "directory",
    [
        "images/vm-persistent/p",
        "images",
        "backup/vm-persistent/p/vm",
        f"backup/vm-persistent/p/other/{LEAF}",
        "backup/vm-persistent/p/vm/20250101T000000Z",
        f"backup/elsewhere/p/vm/{LEAF}",
        f"backup/../images/vm-persistent/p/vm/{LEAF}",
        "",
    ],
)
def test_a_deletion_of_anything_but_the_leafs_own_backup_is_refused(directory: str, tmp_path: Path) -> None:
    """Whoever may write a leaf may not have an agent empty a directory of images."""
    catalogue: Any = SimpleNamespace(leaves=lambda **_: [], leaf=lambda _dn: None)
    plan: Any = SimpleNamespace(backup_root=str(tmp_path / "backup"), retain_root=str(tmp_path / "retain"))
    host: Any = SimpleNamespace(roots=(str(tmp_path),), wall_clock=time.time)
    said = f"{tmp_path}/{directory}" if directory else f"relative/vm-persistent/p/vm/{LEAF}"
    leaf = Leaf(dn="ou=x", machine=MACHINE, timestamp=LEAF, raw_mode="deleting", state="0", set_directory=said)
    with pytest.raises(Refused, match="vmkeepSetDirectory"):
        survey_deletion(catalogue, host, leaf, plan, 1)


def test_a_machine_that_somebody_started_in_between_keeps_what_it_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its old memory is of the past then, and nothing is put under a guest that runs."""
    for at in range(200):
        with made(replace(RUNS, disks=1, old=1)) as world:
            if not _started_at(world, at, monkeypatch):
                break
    assert at > 40


def _started_at(world: World, at: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Kill it, start the machine if it is off over its own image, go on; False where it was never killed."""
    journals = Journals(world.folder / "journal")
    journals.create(world.order)
    world.faults.kill_at = at
    journal = None
    was_killed = was_started = False
    for _ in range(8):
        journal = journals.find(MACHINE, LEAF, Mode.RESTORING)
        assert journal is not None
        try:
            with counted(world.faults, monkeypatch):
                Runner(journal, lambda: 1.0, Patience(0.0, 2)).run(restore(world.order, world.host))
        except TryLater:
            continue
        except Killed:
            world.faults.kill_at, world.faults.dead, was_killed = None, False, True
            if world.hypervisor.guest is None and world.path("vda").read_bytes().startswith(old("vda")):
                world.hypervisor.start(MACHINE)
                was_started = True
    assert journal is not None
    result = journal.record.result
    assert result is not None
    if was_started and result.code:
        guest = world.hypervisor.guest
        assert guest is not None
        assert guest.memory == "fresh", at
        assert b"+fresh" in world.path("vda").read_bytes(), at
    return was_killed


def test_memory_is_not_used_where_the_machine_ran_and_was_switched_off_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with made(replace(RUNS, disks=1, old=1)) as world:
        world.hypervisor.failing.add("restore the set")
        journals = Journals(world.folder / "journal")
        journals.create(world.order)
        world.faults.kill_at = 60  # the machine is off by now, and nothing of it replaced
        with pytest.raises(Killed), counted(world.faults, monkeypatch):
            Runner(_journal(journals), lambda: 1.0, Patience(0.0, 3)).run(restore(world.order, world.host))
        world.faults.kill_at, world.faults.dead = None, False
        assert world.hypervisor.guest is None
        assert world.path("vda").read_bytes().startswith(old("vda"))
        world.hypervisor.start(MACHINE)
        world.hypervisor.power_off()
        outcome = Runner(_journal(journals), lambda: 1.0, Patience(0.0, 3)).run(restore(world.order, world.host))
        assert "could not be put back as it was (there is no memory it could go on from: it was" in outcome.sentence
        guest = world.hypervisor.guest
        assert guest is not None
        assert (guest.memory, guest.power) == ("fresh", Power.RUNNING)
        assert b"+fresh" in world.path("vda").read_bytes()


def with_apply(world: World, name: str, apply: Callable[[Facts], Facts]) -> tuple[Step, ...]:
    """The steps of a restore, one of them doing something else."""
    steps = restore(world.order, world.host)
    return tuple(replace(step, apply=apply) if step.name == name else step for step in steps)


def killed(_facts: Facts) -> Facts:
    raise Killed


def test_memory_is_not_used_either_where_the_old_images_lay_elsewhere() -> None:
    """The backup's description names other paths than the machine had, and somebody ran it on its own in between."""
    with made(Scene(1, 0, Power.OFF)) as world:
        elsewhere = world.folder / "images" / "elsewhere.qcow2"
        elsewhere.write_bytes(old("vda"))
        old_xml = world.order.set.old_xml.replace("vda.qcow2", elsewhere.name)
        restoring = world.order.set.model_copy(update={"old_xml": old_xml})
        world.order = world.order.model_copy(update={"power": Power.RUNNING, "restoring": restoring})
        world.hypervisor.defined = old_xml
        world.hypervisor.start(MACHINE)
        world.hypervisor.failing.add("restore the set")
        journals = Journals(world.folder / "journal")
        journals.create(world.order)
        with pytest.raises(Killed):
            Runner(_journal(journals), lambda: 1.0, Patience(0.0, 3)).run(with_apply(world, "place", killed))
        assert world.hypervisor.guest is None
        world.hypervisor.start(MACHINE)
        world.hypervisor.power_off()
        Runner(_journal(journals), lambda: 1.0, Patience(0.0, 3)).run(restore(world.order, world.host))
        assert world.hypervisor.guest is not None
        assert world.hypervisor.guest.memory == "fresh"


def test_what_somebody_removed_from_aside_is_told_and_not_taken_for_put_back() -> None:
    with made(replace(RUNS, disks=1, old=1)) as world:
        world.faults.watch = lambda: None  # a person's hand takes the old bytes

        def remove_aside(_facts: Facts) -> Facts:
            shutil.rmtree(world.before)
            raise HostFailure("refused by the test")

        journals = Journals(world.folder / "journal")
        journals.create(world.order)
        steps = with_apply(world, "load", remove_aside)
        outcome = Runner(_journal(journals), lambda: 1.0, Patience(0.0, 3)).run(steps)
        assert outcome.code == 21
        assert "and it could not be put back as it was" in outcome.sentence
        assert f"{world.before}, where the machine's own images lay, was removed by somebody" in outcome.sentence
        assert f"the backup's images stay at {world.path('vda')}" in outcome.sentence
        assert "there is no memory it could go on from" in outcome.sentence
        assert world.path("vda").read_bytes().startswith(b"new vda")


def _journal(journals: Journals) -> Any:
    journal = journals.find(MACHINE, LEAF, Mode.RESTORING)
    assert journal is not None
    return journal


def workshop(world: World) -> Any:
    return SimpleNamespace(
        journals=Journals(world.folder / "journal"),
        locks=world.folder / "locks",
        catalogue=SimpleNamespace(leaf=lambda _dn: None),
        host=world.host,
        log=structlog.wrap_logger(None, processors=[_drop]),
    )


def _drop(_logger: object, _name: str, _event: object) -> Any:
    raise structlog.DropEvent


def test_no_work_begins_on_a_machine_while_other_work_on_it_is_half_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that was put off with the machine down would bring its memory back over restored disks."""
    with made(RUNS) as world:
        shop = workshop(world)
        leaf = Leaf(dn="ou=x", machine=MACHINE, timestamp="20270101T000000Z", raw_mode="restoring", state="0")
        journal = shop.journals.create(world.order.model_copy(update={"mode": Mode.SNAPSHOTTING}))
        with pytest.raises(TryLater, match=f"still at snapshotting of {LEAF}"):
            _wait_for_others(shop, leaf)
        _wait_for_others(shop, replace(leaf, machine="other"))
        journal.result(Outcome(0, ""))
        _wait_for_others(shop, leaf)


def test_what_cannot_be_cleared_is_come_back_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with made(RUNS) as world:
        restored(world, monkeypatch)
        (world.retain / "somebody's own").mkdir()
        shop = workshop(world)
        with pytest.raises(TryLater, match="cannot be cleared"):
            clean_up_after_restore(shop, world.order, keep_old=False)
        (world.retain / "somebody's own").rmdir()
        assert clean_up_after_restore(shop, world.order, keep_old=False)
        assert files_below(world.folder / "retain") == []
