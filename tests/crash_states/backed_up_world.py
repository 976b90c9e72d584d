"""A machine that is backed up on a node that loses power: the steps, the runner and the journal are the real ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from nodeagent.host.description import describe
from nodeagent.journal import Journals, Outcome
from nodeagent.order import Firmware, Order, OrderDisk
from nodeagent.steps import Host, Step
from nodeagent.unretained import Unretained
from nodeagent.work import PLANS
from tests.crash_states.losing_power import until_a_result
from tests.crash_states.played_node import PlayedHypervisor, PlayedImages, chain, image, reads_as, saved
from vmkeep.contract.machine import Power
from vmkeep.contract.manifest import Manifest
from vmkeep.contract.methods import Method, Route
from vmkeep.contract.modes import Mode
from vmkeep.contract.paths import STAND_IN_STATE

MACHINE, LEAF = "vm", "20260102T000000Z"
EARLIER = ("20260101T000000Z", "20260101T120000Z")
PLACE = ("vm-persistent", "p")


@dataclass(frozen=True)
class Scene:
    """What there is, and how it is backed up.

    `ram_disk`: memory is saved there first. `instant_is_gone`: somebody wrote the overlays back before the merge.
    """

    disks: int = 1
    power: Power = Power.RUNNING
    firmware: bool = False
    ram_disk: bool = False
    method: Method = Method.SAVE
    once: bool = False
    instant_is_gone: bool = False
    earlier_sets: int = 0
    start_wait: int | None = None


class BackedUp:
    """One machine; `mode` is the step under test, what comes before it is done when the world is made."""

    def __init__(self, roots: list[Path], scene: Scene, mode: Mode) -> None:
        self.roots, self.scene, self.mode = roots, scene, mode
        self.node, self.backup_root = roots[0], roots[-1] / "backup"
        self.ram_disk = roots[0].parent / "ram"
        self.ram_disk.mkdir()
        self._make()
        self.hypervisor = PlayedHypervisor(self._xml())
        self.hypervisor.acknowledged = {disk.target: reads_as(Path(disk.path)) for disk in self.order().disks}
        if scene.power is not Power.OFF:
            self.hypervisor.start(MACHINE, paused=scene.power is Power.PAUSED)
            self.hypervisor.guest.memory = "the machine's own"
        for earlier in (Mode.SNAPSHOTTING, Mode.MERGING):
            if earlier is mode:
                break
            assert self._done(earlier).code == 0
            (self.node / "journal" / f"{MACHINE}.{LEAF}.{earlier}.journal").unlink()
        if scene.instant_is_gone:
            for disk in self.order().disks:
                self.hypervisor.commit(MACHINE, disk.target, disk.path, 0)
                self.hypervisor.pivot(MACHINE, disk.target)
                next((self.node / "images").glob(f".{disk.kept}.*")).unlink()

    # what power is lost in

    def act(self) -> None:
        assert bool(self._done(self.mode).code) is self.scene.instant_is_gone, self.outcome

    def witness(self) -> Any:
        return self.hypervisor.defined, tuple(sorted(self.hypervisor.acknowledged.items()))

    def lose_power(self, witness: Any) -> None:
        self.hypervisor.power_off()
        self.hypervisor.defined, acknowledged = witness
        self.hypervisor.acknowledged = dict(acknowledged)
        for left in self.ram_disk.iterdir():
            left.unlink()

    def check_at_once(self) -> None:
        check_visible_sets(self.backup_root.joinpath(*PLACE, MACHINE), self.scene.earlier_sets)

    def recover(self) -> None:
        self.outcome = self._done(self.mode)

    def _done(self, mode: Mode) -> Outcome:
        order = self.order(mode)
        journal = until_a_result(Journals(self.node / "journal"), order, lambda: self.plan(mode))
        assert journal.record.result is not None
        self.outcome = journal.record.result
        return journal.record.result

    def plan(self, mode: Mode) -> tuple[Step, ...]:
        journal = Journals(self.node / "journal").find(MACHINE, LEAF, mode)
        assert journal is not None
        return PLANS[mode](journal.order, self.host)

    # what is looked at

    def check(self) -> None:
        self.check_machine()
        checks = {Mode.SNAPSHOTTING: self._check_snapshot, Mode.MERGING: self._check_merge}
        checks.get(self.mode, self._check_retain)()

    def check_machine(self) -> None:
        """What the guest had acknowledged is on the live chain, and what runs is what was there."""
        for disk in self.order().disks:
            live = describe(self.hypervisor.defined).chains[disk.target][0]
            found = reads_as(Path(live))
            assert found.startswith(self.hypervisor.acknowledged[disk.target]), (live, found)
            beside = [path.name for path in Path(disk.path).parent.iterdir() if path.name.startswith(".")]
            frozen = self.mode is Mode.SNAPSHOTTING and self.scene.method is not Method.SAVE and not self.outcome.code
            assert frozen or not beside, (beside, self.outcome)
            assert frozen or live == disk.path, (live, self.outcome)
        guest = self.hypervisor.guest
        if guest is not None:
            assert guest.power is self.scene.power, (guest.power, self.outcome)
        if self.scene.firmware:
            assert (self.node / "nvram/vars").read_bytes() == b"firmware"

    def _check_snapshot(self) -> None:
        order, retain = self.order(), Path(self.order().paths.retain)
        if self.outcome.code:
            assert not retain.exists(), (sorted(retain.iterdir()), self.outcome)
            for disk in order.disks:
                assert len(chain(Path(disk.path))) == 1, self.outcome
            return
        for disk in order.disks:
            if self.scene.method is Method.SAVE:
                assert chain(Path(disk.path)) == (disk.path, str(retain / disk.kept))
        self._check_files_of_instant(retain, "")

    def _check_merge(self) -> None:
        order, retain = self.order(), Path(self.order().paths.retain)
        for disk in order.disks:
            assert len(chain(Path(disk.path))) == 1, self.outcome
        if self.outcome.code:
            assert self.scene.method is not Method.SAVE, self.outcome
            assert not retain.exists()
            assert not Path(order.paths.backup).exists()
        elif self.scene.once:
            self._check_files_of_instant(retain, "", Path(order.paths.backup))
        else:
            self._check_files_of_instant(retain, "")

    def _check_files_of_instant(self, folder: Path, suffix: str, images: Path | None = None) -> None:
        order = self.order()
        paths = order.paths
        assert (folder / f"{paths.ldif}{suffix}").read_text() == order.ldif
        assert MACHINE in (folder / f"{paths.xml}{suffix}").read_text()
        if self.scene.firmware:
            assert (folder / f"{paths.nvram}{suffix}").read_bytes() == b"firmware"
        instant = {}
        for disk in order.disks:
            path = folder / f"{disk.kept}{suffix}" if images is None else images / paths.kept_name(disk.kept)
            if path.exists() or not (self.mode is Mode.SNAPSHOTTING and order.route.freezes):
                instant[disk.target] = reads_as(path).decode()
            else:
                instant[disk.target] = reads_as(Path(disk.path)).decode()
        if order.has_memory:
            assert saved(folder / f"{paths.state}{suffix}")["disks"] == instant
        else:
            assert (folder / f"{paths.state}{suffix}").read_text() == STAND_IN_STATE

    def _check_retain(self) -> None:
        order = self.order()
        assert self.outcome.code == 0, self.outcome
        assert not Path(order.paths.retain).exists(), list(Path(order.paths.retain).iterdir())
        sets = sorted(path.name for path in Path(order.paths.backup).parent.iterdir())
        assert sets == [*EARLIER[: self.scene.earlier_sets], LEAF], sets
        for name in sets:
            check_set(Path(order.paths.backup).parent / name)
        self._check_files_of_instant(Path(order.paths.backup), f".{LEAF}")

    # the world

    @property
    def host(self) -> Host:
        hypervisor: Any = self.hypervisor
        roots = [str(root) for root in (*self.roots, self.ram_disk)]
        return Host("n1", hypervisor, PlayedImages(), roots, {}, Unretained(self.node / "notes"))

    def order(self, mode: Mode = Mode.SNAPSHOTTING) -> Order:
        scene = self.scene
        firmware = Firmware(role="nvram", path=str(self.node / "nvram/vars"), kept=f"{MACHINE}.nvram")
        order = Order(
            leaf_dn=f"ou={LEAF}",
            machine=MACHINE,
            timestamp=LEAF,
            mode=mode,
            uuid="u",
            power=scene.power,
            disks=tuple(self._disk(number) for number in range(scene.disks)),
            firmware=(firmware,) if scene.firmware else (),
            retain_root=str(self.node / "retain"),
            backup_root=str(self.backup_root),
            place=PLACE,
            ram_disk=str(self.ram_disk) if scene.ram_disk else None,
            ldif="dn: the machine\n",
            method=scene.method,
            start_wait=scene.start_wait,
            route=Route(freezes=scene.method is not Method.SAVE, clones=False, once=scene.once, renames=not scene.once),
        )
        published = (Path(order.paths.backup) / f"manifest.json.{LEAF}").exists()
        return order.model_copy(update={"published": published}) if mode is Mode.RETAINING else order

    def _disk(self, number: int) -> OrderDisk:
        name = f"disk{number}.qcow2"
        return OrderDisk(target=f"vd{'ab'[number]}", path=str(self.node / "images" / name), kept=name, size=1 << 20)

    def _make(self) -> None:
        for name in ("images", "retain", "journal", "notes", "nvram"):
            (self.node / name).mkdir()
        self.backup_root.mkdir()
        for number in range(self.scene.disks):
            Path(self._disk(number).path).write_bytes(image(b"data of %d" % number))
        if self.scene.firmware:
            (self.node / "nvram/vars").write_bytes(b"firmware")
        for timestamp in EARLIER[: self.scene.earlier_sets]:
            make_set(self.backup_root.joinpath(*PLACE, MACHINE, timestamp))

    def _xml(self) -> str:
        disks = "".join(
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk.path}'/>"
            f"<target dev='{disk.target}' bus='virtio'/></disk>"
            for disk in self.order().disks
        )
        return f"<domain><name>{MACHINE}</name><uuid>u</uuid><devices>{disks}</devices></domain>"


def make_set(folder: Path) -> None:
    """A complete set of one file."""
    folder.mkdir(parents=True)
    content = image(b"of long ago")
    (folder / f"disk0.qcow2.{folder.name}").write_bytes(content)
    file = {"name": f"disk0.qcow2.{folder.name}", "role": "disk", "size": len(content), "digest": digest(content)}
    fields = {"machine": MACHINE, "uuid": "u", "timestamp": folder.name, "node": "n1", "power": "off", "versions": {}}
    manifest = Manifest.model_validate({**fields, "method": "save", "consistency": "off", "files": [file]})
    (folder / f"manifest.json.{folder.name}").write_text(manifest.to_json())


def check_set(folder: Path, *, exactly: bool = True) -> None:
    """A directory that shows a manifest holds what that says, whole; `exactly`: and nothing else."""
    manifest = Manifest.model_validate_json((folder / f"manifest.json.{folder.name}").read_bytes())
    if exactly:
        names = {file.name for file in manifest.files}
        assert {path.name for path in folder.iterdir()} == {*names, f"manifest.json.{folder.name}"}, folder
    for file in manifest.files:
        content = (folder / file.name).read_bytes()
        assert (file.size, file.digest) == (len(content), digest(content)), file.name


def check_visible_sets(machine: Path, at_least: int) -> None:
    """Every set that is shown is whole, and there is a good one where there was one."""
    shown = [manifest.parent for manifest in machine.glob("*/manifest.json.*")]
    for folder in shown:
        check_set(folder, exactly=False)
    assert shown or not at_least, "the last good set is lost"


def digest(content: bytes) -> str:
    """As manifests write it."""
    return f"blake3:{blake3(content).hexdigest()}"
