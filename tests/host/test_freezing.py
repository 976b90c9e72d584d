"""The instant of a machine that runs on over overlays; libvirt is played and refuses, images and files are real.

Whatever goes wrong, the guest's filesystems are thawed, no copy is kept of an instant that is gone, and no overlay goes
while anybody may need it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from lab import programs
from nodeagent.host.description import describe
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, make_folder
from nodeagent.host.hypervisor import Job, View
from nodeagent.operations import freezing
from nodeagent.operations.freezing import Freezing
from nodeagent.operations.frozen_copies import FrozenCopies
from nodeagent.operations.making import MadeFile, Making, write_making
from nodeagent.operations.overlays import overlay_of, write_back
from nodeagent.order import Order
from nodeagent.steps import Facts, Host
from tests.orders import TIMESTAMP, disk_in, host_at, order_in, plain_image
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.machine import Power
from vmkeep.contract.methods import Method
from vmkeep.contract.modes import Mode

CHANNEL = "<channel><target name='org.qemu.guest_agent.0' state='connected'/></channel>"


@dataclass
class Qemu:
    """One machine that runs, with an agent inside; `refusing` are verbs that libvirt refuses, and how often."""

    image: Path
    source: Path
    power: Power = Power.RUNNING
    is_halted: bool = False
    refusing: dict[str, int] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    block_job: Job | None = None

    def look(self, _name: str) -> View:
        disk = f"<disk type='file' device='disk'><source file='{self.source}'/><target dev='vda'/></disk>"
        xml = f"<domain><name>vm</name><devices>{disk}{CHANNEL}</devices></domain>"
        return View(self.power, False, False, xml, describe(xml), self.is_halted)

    def freeze(self, _name: str, overlays: Mapping[str, str], memory: str | None, *, quiesce: bool = False) -> None:
        self._verb("quiesce" if quiesce else "freeze")
        overlay = Path(overlays["vda"])
        programs.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", self.image, "-F", "qcow2", overlay],
        )
        if memory:
            Path(memory).write_bytes(b"LibvirtQemudSave")
        self.source = overlay

    @contextmanager
    def limited_agent(self, _name: str, _seconds: int) -> Iterator[bool]:
        yield True

    def thaw(self, _name: str) -> None:
        self._verb("thaw")

    def job(self, _name: str, _target: str) -> Job | None:
        return self.block_job

    def commit(self, _name: str, _target: str, _base: str, _bandwidth: int) -> None:
        self._verb("commit")

    def wait_until_ready(self, _name: str, _target: str, _progress: object) -> bool:
        return True

    def pivot(self, _name: str, _target: str) -> None:
        self._verb("pivot")
        self.source = self.image

    def resume(self, _name: str) -> None:
        self._verb("resume")
        self.power, self.is_halted = Power.RUNNING, False

    def is_saving(self, _name: str) -> bool:
        return False

    def definition(self, _name: str) -> str:
        return ""

    def _verb(self, name: str) -> None:
        if self.refusing.get(name, 0) > 0:
            self.refusing[name] -= 1
            raise HostFailure(f"{name} was refused")
        self.said.append(name)


@pytest.fixture
def qemu(tmp_path: Path) -> Qemu:
    image = plain_image(tmp_path)
    return Qemu(image, image)


@pytest.fixture
def host(qemu: Qemu, tmp_path: Path) -> Host:
    return host_at(tmp_path, qemu)


@pytest.fixture
def order(tmp_path: Path) -> Order:
    order = order_in(tmp_path, Mode.SNAPSHOTTING, method=Method.DISK, disks=(disk_in(tmp_path),))
    Path(order.paths.retain).mkdir(parents=True)
    return order


@pytest.fixture(autouse=True)
def short_thaw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing, "_THAW_SECONDS", 0.3)
    monkeypatch.setattr(freezing, "_POLL_SECONDS", 0.05)


def froze(order: Order, host: Host) -> Facts:
    return Freezing(order, host).freeze({})


# the guest's filesystems


def test_a_guest_that_freezes_its_filesystems_is_called_quiesced(order: Order, host: Host, qemu: Qemu) -> None:
    assert froze(order, host)["consistency"] == "quiesced"
    assert qemu.said == ["quiesce"]


@pytest.mark.parametrize(("method", "refusing"), [(Method.LIVE, {}), (Method.DISK, {}), (Method.DISK, {"quiesce": 1})])
def test_the_instant_is_the_end_of_libvirts_call(
    order: Order, host: Host, qemu: Qemu, method: Method, refusing: dict[str, int]
) -> None:
    qemu.refusing = refusing
    facts = froze(order.model_copy(update={"method": method}), replace(host, wall_clock=lambda: float(len(qemu.said))))
    assert facts["instant"] == len(qemu.said) > 0


def test_one_that_does_not_is_thawed_and_frozen_without(order: Order, host: Host, qemu: Qemu) -> None:
    qemu.refusing = {"quiesce": 1, "thaw": 2}
    facts = froze(order, host)
    assert facts["consistency"] == "crash"
    assert facts["warning"] == "the guest's filesystems could not be frozen: quiesce was refused"
    assert qemu.said == ["thaw", "freeze"]


def test_where_nobody_thaws_a_person_is_told_how(order: Order, host: Host, qemu: Qemu) -> None:
    qemu.refusing = {"quiesce": 1, "thaw": 1000}
    assert str(froze(order, host)["warning"]).endswith(
        "; whether they go on is not known, see to it with: virsh domfsthaw vm"
    )


def test_a_paused_guest_answers_nothing_and_is_not_asked(order: Order, host: Host, qemu: Qemu) -> None:
    qemu.power = Power.PAUSED
    assert froze(order, host)["consistency"] == "crash"
    assert qemu.said == ["freeze"]


def test_a_machine_that_is_off_or_paused_by_now_is_not_frozen_with_its_memory(
    order: Order, host: Host, qemu: Qemu
) -> None:
    live = order.model_copy(update={"method": Method.LIVE})
    for power, word in ((Power.OFF, "switched off"), (Power.PAUSED, "paused")):
        qemu.power = power
        with pytest.raises(Refused, match=f"vm was {word} before it could be frozen") as refused:
            froze(live, host)
        assert refused.value.code is ReturnValue.GUEST_STOPPED
    assert qemu.said == []


# after a killed agent


def test_what_came_of_an_instant_is_asked_of_libvirt_and_the_memory(order: Order, host: Host, qemu: Qemu) -> None:
    live = order.model_copy(update={"method": Method.LIVE})
    assert Freezing(order, host).frozen({}) is None
    assert Freezing(live, host).frozen({}) is None
    froze(live, host)
    memory = Path(live.state_candidates[0])
    qemu.power = Power.PAUSED
    assert Freezing(live, host).frozen({}) == {"state_path": str(memory), "consistency": "state"}
    assert qemu.power is Power.RUNNING, "a libvirt that died in the middle left it paused"
    memory.write_bytes(b"LibvirtQemudPart")
    assert Freezing(live, host).frozen({}) is None
    assert Freezing(order, host).frozen({}) == {"consistency": "crash"}


def test_taken_back_the_machine_runs_over_its_own_image_and_no_memory_is_left(
    order: Order, host: Host, qemu: Qemu
) -> None:
    live = order.model_copy(update={"method": Method.LIVE})
    froze(live, host)
    qemu.power = Power.PAUSED
    Freezing(live, host).unfreeze({})
    assert (qemu.source, qemu.power) == (qemu.image, Power.RUNNING)
    assert list(Path(order.paths.retain).iterdir()) == []
    assert [path.name for path in qemu.image.parent.iterdir()] == ["d.qcow2"]


# overlays


def written_back(order: Order, host: Host) -> None:
    write_back(host, order, order.disks[0])


def test_a_write_back_that_is_refused_is_tried_again_and_then_told(order: Order, host: Host, qemu: Qemu) -> None:
    froze(order, host)
    overlay = qemu.source
    qemu.refusing = {"pivot": 1000}
    with pytest.raises(HostFailure, match=r"^vda still writes to an overlay of .*d\.qcow2: pivot was refused$"):
        written_back(order, host)
    assert overlay.exists()
    qemu.refusing = {"pivot": 2}
    written_back(order, host)
    assert not overlay.exists()


def test_somebody_elses_block_job_is_waited_for(order: Order, host: Host, qemu: Qemu) -> None:
    froze(order, host)
    qemu.block_job = Job(is_pull=True, is_commit=False, done=0)
    with pytest.raises(TryLater, match="somebody else's block job is at work on vda"):
        written_back(order, host)
    assert qemu.source != qemu.image
    qemu.block_job = Job(is_pull=False, is_commit=True, done=0)
    written_back(order, host)
    assert "commit" not in qemu.said, "the one at work was joined"


def test_a_machine_that_found_no_room_in_its_overlay_goes_on_over_its_image(
    order: Order, host: Host, qemu: Qemu
) -> None:
    froze(order, host)
    qemu.power, qemu.is_halted = Power.PAUSED, True
    written_back(order, host)
    assert qemu.power is Power.RUNNING


def test_an_overlay_over_another_image_is_not_written_back_offline(order: Order, host: Host, qemu: Qemu) -> None:
    froze(order, host)
    overlay, other = qemu.source, qemu.image.with_name("other.qcow2")
    overlay.unlink()
    programs.run(["qemu-img", "create", "-q", "-f", "qcow2", other, "1M"])
    host.images.create_overlay(overlay, other, 1 << 20)
    qemu.power = Power.OFF
    with pytest.raises(HostFailure, match=f"lies over {other}, not over {qemu.image}; somebody else changed it"):
        written_back(order, host)


# copies


def test_a_copy_is_not_kept_where_the_instant_ended_while_it_was_made(order: Order, host: Host, qemu: Qemu) -> None:
    froze(order, host)
    making = Making(
        machine="vm",
        uuid="u",
        timestamp=TIMESTAMP,
        node="n1",
        power=Power.RUNNING,
        method=Method.DISK,
        consistency="crash",
        files=(MadeFile(name="d.qcow2", role="disk", target="vda"),),
        versions={},
    )
    with make_folder(order.paths.retain, host.roots, Access()) as retain:
        write_making(retain, making)

    def written_back_by_hand(_bytes: int) -> None:
        qemu.source = qemu.image

    [disk] = order.disks
    merging = order.model_copy(update={"mode": Mode.MERGING})
    copies = FrozenCopies(merging, replace(host, progress=written_back_by_hand))
    with pytest.raises(Refused, match="is written to again, its instant is gone") as refused:
        copies.copy(disk, {})
    assert refused.value.code is ReturnValue.CANNOT_MERGE
    kept = Path(order.paths.retain) / "d.qcow2"
    assert not kept.exists()
    qemu.source = Path(overlay_of(disk, TIMESTAMP))
    FrozenCopies(merging, host).copy(disk, {})
    assert kept.exists()
