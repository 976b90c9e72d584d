"""Where a machine's memory goes when it is saved or frozen by a host whose RAM disk fails in that very moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pytest

from nodeagent.host.description import describe
from nodeagent.host.errors import HostFailure
from nodeagent.host.hypervisor import View
from nodeagent.operations.freezing import Freezing
from nodeagent.operations.resuming import Resuming
from tests.orders import host_at, order_in
from vmkeep.contract.machine import Power
from vmkeep.contract.methods import Method
from vmkeep.contract.modes import Mode

EITHER = pytest.mark.parametrize("method", [Method.LIVE, Method.SAVE])


@dataclass
class Qemu:
    """One machine that runs, whose memory cannot be written below some directories."""

    image: Path
    full: tuple[Path, ...]
    memory: list[str] = field(default_factory=list)

    def look(self, _name: str) -> View:
        disk = f"<disk type='file' device='disk'><source file='{self.image}'/><target dev='vda'/></disk>"
        xml = f"<domain><name>vm</name><devices>{disk}</devices></domain>"
        return View(Power.RUNNING, stopped_by_itself=False, moved_away=False, xml=xml, description=describe(xml))

    def freeze(self, name: str, _overlays: Mapping[str, str], memory: str) -> None:
        self.save(name, memory)

    def save(self, _name: str, memory: str) -> None:
        if any(PurePosixPath(memory).is_relative_to(folder) for folder in self.full):
            raise HostFailure("no space left on device")
        self.memory.append(memory)


def written(method: Method, tmp_path: Path, *full: str) -> tuple[Mapping[str, object], list[str]]:
    """The facts of the instant, and where the memory went."""
    for name in ("images", "retain", "ram"):
        (tmp_path / name).mkdir()
    image = tmp_path / "images/d.qcow2"
    image.touch()
    order = order_in(tmp_path, Mode.SNAPSHOTTING, ram_disk=str(tmp_path / "ram"), method=method)
    qemu = Qemu(image, tuple(tmp_path / name for name in full))
    host = host_at(tmp_path, qemu)
    take = Freezing(order, host).freeze if method is Method.LIVE else Resuming(order, host).save
    return take({}), qemu.memory


@EITHER
def test_memory_goes_to_the_ram_disk_and_nothing_is_said(method: Method, tmp_path: Path) -> None:
    facts, memory = written(method, tmp_path)
    assert memory == [f"{tmp_path}/ram/vm.state.20260101T000000Z"]
    assert "warning" not in facts


@EITHER
def test_where_the_ram_disk_fails_it_goes_to_retain_and_that_is_said(method: Method, tmp_path: Path) -> None:
    facts, memory = written(method, tmp_path, "ram")
    assert memory == [f"{tmp_path}/retain/vm-persistent/p/vm/20260101T000000Z/vm.state"]
    said = f"RAM disk {tmp_path}/ram cannot be used (no space left on device); "
    assert facts["warning"] == f"{said}the memory was saved to the retain directory"


@EITHER
def test_where_no_place_takes_it_that_is_a_failure(method: Method, tmp_path: Path) -> None:
    with pytest.raises(HostFailure, match="no space left"):
        written(method, tmp_path, "ram", "retain")
