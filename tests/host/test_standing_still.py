"""A machine that stands still for its snapshot, and somebody or something that comes in between; libvirt is played."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pytest

from lab import programs
from nodeagent.host.description import describe
from nodeagent.host.errors import HostFailure
from nodeagent.host.hypervisor import View
from nodeagent.operations import saved_memory, settling
from nodeagent.operations.cloning_still import CloningStill
from nodeagent.operations.letting_go import let_go, was_let_go
from nodeagent.operations.resuming import Resuming
from nodeagent.operations.streaming import make_whole
from nodeagent.operations.swapping import Swapping
from nodeagent.order import Order
from nodeagent.steps import LEFT, Host
from tests.orders import disk_in, host_at, order_in, plain_image
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.machine import Power
from vmkeep.contract.methods import Route
from vmkeep.contract.modes import Mode

MEMORY = b"LibvirtQemudSave and memory"


@dataclass
class Qemu:
    """One machine that is off once it was saved; `chain` are the files QEMU has open once it was started."""

    image: Path
    power: Power | None = Power.OFF
    chain: tuple[str, ...] = ()
    stopped_by_itself: bool = False
    starts_at_look: int = 0
    ends_at_look: int = 0
    saving: Iterator[bool] = field(default_factory=lambda: iter(()))
    said: list[str] = field(default_factory=list)
    looks: int = 0

    def look(self, _name: str) -> View | None:
        self.looks += 1
        if self.looks == self.starts_at_look:
            self.power = Power.RUNNING
        if self.looks == self.ends_at_look:
            self.power = Power.OFF
        return None if self.power is None else self._view(self.power)

    def _view(self, power: Power) -> View:
        layers = "".join(f"<backingStore><source file='{file}'/>" for file in self.chain[1:])
        layers += "</backingStore>" * len(self.chain[1:])
        source = self.chain[0] if self.chain else self.image
        disk = f"<disk type='file' device='disk'><source file='{source}'/><target dev='vda'/>{layers}</disk>"
        xml = f"<domain><name>vm</name><devices>{disk}</devices></domain>"
        return View(power, self.stopped_by_itself, False, xml, describe(xml))

    def is_saving(self, _name: str) -> bool:
        return next(self.saving, False)

    def saved_description(self, _path: str) -> str:
        return self._view(Power.OFF).xml

    def save(self, _name: str, path: str) -> None:
        self.said.append("save")
        raise HostFailure("the save was refused")

    def restore(self, _path: str, _xml: str, power: Power) -> None:
        self.said.append("restore")
        self.power = None if self.power is None else power

    def start(self, _name: str, *, paused: bool = False) -> None:
        self.said.append("start")
        self.power = Power.PAUSED if paused else Power.RUNNING

    def resume(self, _name: str) -> None:
        self.said.append("resume")
        self.power = Power.RUNNING

    def destroy(self, _name: str) -> None:
        self.said.append("destroy")
        self.power = Power.OFF

    def job(self, _name: str, _target: str) -> object:
        raise HostFailure("the job is not known")


@pytest.fixture
def qemu(tmp_path: Path) -> Qemu:
    image = plain_image(tmp_path)
    return Qemu(image)


@pytest.fixture
def host(qemu: Qemu, tmp_path: Path) -> Host:
    return host_at(tmp_path, qemu)


@pytest.fixture
def order(tmp_path: Path) -> Order:
    order = order_in(tmp_path, Mode.SNAPSHOTTING, disks=(disk_in(tmp_path, size=1 << 20),))
    Path(order.paths.retain).mkdir(parents=True)
    return order


def state(order: Order) -> Path:
    """Its memory, written after its disks."""
    path = Path(order.state_candidates[-1])
    path.write_bytes(MEMORY)
    return path


def swapped(order: Order, host: Host) -> Path:
    """The kept image; the overlay lies over it in its place."""
    swapping = Swapping(order, host)
    for step in (swapping.create, swapping.swap):
        step({})
    return Path(order.paths.retain) / "d.qcow2"


# the save


def test_a_save_without_us_is_waited_for_and_come_back_to(
    order: Order, host: Host, qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    del order
    monkeypatch.setattr(saved_memory, "_POLL_SECONDS", 0.01)
    qemu.saving = iter((True, True, False))
    saved_memory.wait_for_a_save_without_us(host, "vm")
    monkeypatch.setattr(saved_memory, "_FOREIGN_SAVE_SECONDS", 0.05)
    qemu.saving = iter([True] * 500)
    with pytest.raises(TryLater, match="vm is still being saved"):
        saved_memory.wait_for_a_save_without_us(host, "vm")


def test_a_machine_that_is_off_is_not_saved_over_its_memory(order: Order, host: Host, qemu: Qemu) -> None:
    memory = state(order)
    with pytest.raises(Refused, match="was switched off before it could be saved") as refused:
        Resuming(order, host).save({})
    assert refused.value.code is ReturnValue.GUEST_STOPPED
    assert (memory.read_bytes(), qemu.said) == (MEMORY, [])


def test_a_machine_that_stops_in_its_save_is_not_saved_elsewhere(order: Order, host: Host, qemu: Qemu) -> None:
    qemu.power = Power.RUNNING

    def stops(_name: str, _path: str) -> None:
        qemu.power = Power.OFF
        raise HostFailure("end of file from monitor")

    qemu.save = stops  # type: ignore[method-assign]
    with pytest.raises(Refused, match="vm stopped while it was being saved: end of file from monitor"):
        Resuming(order, host).save({})


def test_what_came_of_a_save_is_the_memory_of_a_machine_that_is_off(order: Order, host: Host, qemu: Qemu) -> None:
    assert Resuming(order, host).saved({"save_began": 1.0}) is None
    memory = state(order)
    assert Resuming(order, host).saved({"save_began": 1.0}) == {"state_path": str(memory), "down_at": 1.0}
    qemu.power = Power.RUNNING
    assert Resuming(order, host).saved({"save_began": 1.0}) is None


# over its overlay again


def resume(order: Order, host: Host) -> object:
    return Resuming(order, host).resume({"state_path": str(state(order)), "down_at": 0.0})


def test_a_machine_that_runs_over_other_images_was_started_by_somebody(order: Order, host: Host, qemu: Qemu) -> None:
    qemu.power = Power.RUNNING
    with pytest.raises(Refused, match="was started by somebody else while it was being saved"):
        resume(order, host)
    assert qemu.said == []


def test_a_machine_that_waits_over_its_overlay_is_let_go_without_its_memory(
    order: Order, host: Host, qemu: Qemu
) -> None:
    qemu.power, qemu.chain = Power.PAUSED, (str(qemu.image), f"{order.paths.retain}/d.qcow2")
    resume(order, host)
    assert qemu.said == ["resume"]
    assert Resuming(order, host).resumed({"down_at": 0.0}) is not None


@pytest.mark.parametrize("by_itself", [True, False], ids=["switched off", "crashed"])
def test_a_machine_that_stopped_right_after_it_ran_on_never_meets_its_memory_again(
    by_itself: bool, order: Order, host: Host, qemu: Qemu
) -> None:
    swapped(order, host)
    programs.run(["qemu-io", "-f", "qcow2", "-c", "write 0 64k", qemu.image])
    qemu.stopped_by_itself = by_itself
    resume(order, host)
    assert qemu.said == ([] if by_itself else ["start"])


def test_a_machine_over_other_images_than_it_should_is_stopped_before_it_runs(
    order: Order, host: Host, qemu: Qemu
) -> None:
    chains = {"vda": (str(qemu.image), "/what/it/lies/over")}
    with pytest.raises(HostFailure, match="came up over other images than it should"):
        saved_memory.load(host, "vm", str(state(order)), "", chains)
    assert qemu.said == ["restore", "destroy"]
    qemu.power = None
    with pytest.raises(HostFailure, match="stopped as soon as it was restored"):
        saved_memory.load(host, "vm", str(state(order)), "", chains)


def test_without_memory_it_comes_back_as_after_a_power_failure_or_is_told(order: Order, host: Host, qemu: Qemu) -> None:
    def brought_back() -> object:
        return saved_memory.bring_back(host, "vm", Power.RUNNING, order.state_candidates, is_past=False).get(LEFT)

    assert "it was started anew, as after a power failure" in str(brought_back())
    assert qemu.power is Power.RUNNING
    qemu.power, qemu.stopped_by_itself = Power.OFF, True
    assert brought_back() is None, "its admin switched it off"
    qemu.power = None
    assert "libvirt does not know it any more" in str(brought_back())


def test_a_machine_is_let_go_once_and_one_that_stopped_before_is_said(order: Order, host: Host, qemu: Qemu) -> None:
    with pytest.raises(HostFailure, match="stopped before it was let go"):
        let_go(order, host)
    qemu.power = Power.PAUSED
    assert was_let_go(order, host) is None
    assert let_go(order, host) == let_go(order, host) == {}
    assert was_let_go(order, host) == {}
    assert qemu.said == ["resume"]
    qemu.power, qemu.stopped_by_itself = Power.OFF, True
    assert "switched off right after" in str(was_let_go(order, host))
    qemu.stopped_by_itself = False
    assert "started anew" in str(was_let_go(order, host))


# clones


def test_the_clones_of_a_snapshot_that_is_taken_back_go(order: Order, host: Host, qemu: Qemu) -> None:
    del qemu
    clone = Path(order.paths.retain) / "d.qcow2"
    clone.write_bytes(b"a clone")
    cloned = order.model_copy(update={"route": Route(freezes=False, clones=True, once=False)})
    CloningStill(cloned, host).remove({})
    CloningStill(cloned, host).remove({})
    assert not clone.exists()


def test_nothing_is_cloned_of_a_machine_that_somebody_started(order: Order, host: Host, qemu: Qemu) -> None:
    qemu.power = Power.RUNNING
    with pytest.raises(Refused, match="was started by somebody else"):
        CloningStill(order, host).clone({})
    assert list(Path(order.paths.retain).iterdir()) == []


@pytest.mark.parametrize("power", [Power.PAUSED, Power.RUNNING])
def test_a_machine_whose_images_are_cloned_is_known_to_wait_and_to_have_gone_on(
    power: Power, order: Order, host: Host, qemu: Qemu
) -> None:
    still = CloningStill(order.model_copy(update={"power": power}), host)
    facts = {"down_at": 0.0, "state_path": str(state(order))}
    assert still.loaded(facts) is None
    qemu.power = Power.PAUSED
    found = still.loaded(facts)
    assert found is not None
    assert ("downtime" in found) is (power is Power.PAUSED), "one that was paused is what it was"
    assert still.gone(facts) is None
    assert "downtime" in still.go(facts)
    assert still.gone(facts) is not None


# the swap


def test_an_image_that_somebody_elses_overlay_lies_over_is_left_alone(order: Order, host: Host, qemu: Qemu) -> None:
    other = qemu.image.with_name("other.qcow2")
    qemu.image.rename(other)
    host.images.create_overlay(qemu.image, other, 1 << 20)
    with pytest.raises(HostFailure, match=f"has become an overlay of {other}; somebody else is at work on it"):
        Swapping(order, host).swap({})


def test_a_machine_that_was_saved_and_runs_keeps_its_images(order: Order, host: Host, qemu: Qemu) -> None:
    qemu.power = Power.RUNNING
    with pytest.raises(Refused, match="was started by somebody else"):
        Swapping(order, host).swap({})
    assert list(Path(order.paths.retain).iterdir()) == []


def test_a_machine_that_is_started_in_the_moment_of_the_swap_is_saved_by_the_next_run(
    order: Order, host: Host, qemu: Qemu
) -> None:
    off = order.model_copy(update={"power": Power.OFF})
    qemu.starts_at_look = 2
    with pytest.raises(Refused, match="was started while its images were being moved") as refused:
        swapped(off, host)
    assert refused.value.code is ReturnValue.WRONG_STATE_INFORMATION
    before = (Path(order.paths.retain) / "d.qcow2").stat().st_ino
    assert Swapping(off, host).swap_back({}) == {}, "it holds its old image, and gets its name back"
    assert qemu.image.stat().st_ino == before


def test_an_overlay_that_was_written_to_is_made_whole_and_told(order: Order, host: Host, qemu: Qemu) -> None:
    kept = swapped(order, host)
    programs.run(["qemu-io", "-f", "qcow2", "-c", "write 0 64k", qemu.image])
    assert Swapping(order, host).swap_back({}) == {"ran_on": True}
    assert host.header(PurePosixPath(order.disks[0].path)).backing_file is None
    assert not kept.exists()


def test_a_qemu_that_dies_is_waited_for_where_libvirt_says_for_a_while_that_it_runs(
    order: Order, host: Host, qemu: Qemu
) -> None:
    swapped(order, host)
    qemu.power, qemu.ends_at_look = Power.RUNNING, qemu.looks + 12
    make_whole(host, order, order.disks[0])
    assert host.header(PurePosixPath(order.disks[0].path)).backing_file is None


def test_a_pull_that_libvirt_refuses_is_told_after_some_rounds(
    order: Order, host: Host, qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "_DYING_SECONDS", 0.1)
    swapped(order, host)
    qemu.power = Power.RUNNING
    with pytest.raises(HostFailure, match=r"still names a backing file, .*: the job is not known$"):
        make_whole(host, order, order.disks[0])
