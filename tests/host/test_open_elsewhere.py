"""An image that some QEMU has open, of a machine that does not run here: it is not given to anything else."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab import programs
from lab.waiting import until
from nodeagent.host.description import describe
from nodeagent.host.hypervisor import View
from nodeagent.operations.in_use import refuse_if_open_elsewhere, refuse_if_written_elsewhere
from nodeagent.operations.overlays import overlay_name
from nodeagent.operations.restore_survey import refuse_obstacles
from nodeagent.steps import Host
from tests.conftest import require
from tests.orders import TIMESTAMP, host_at, order_in, plain_image
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode


@pytest.fixture
def image(tmp_path: Path) -> Path:
    require([f"the program {name} is not installed" for name in programs.missing(("qemu-img", "qemu-io"))])
    return plain_image(tmp_path)


@contextmanager
def opened(image: Path, *options: str) -> Iterator[None]:
    """By a QEMU tool that nobody of ours knows of, until the block ends."""
    argv = [programs.locate("qemu-io"), *options, "-f", "qcow2", str(image)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as tool:
        try:
            until("the image to be locked", lambda: is_locked(image), 20, step=0.02)
            yield
        finally:
            assert tool.stdin is not None
            tool.stdin.close()


def is_locked(image: Path) -> bool:
    return f":{image.stat().st_ino} " in Path("/proc/locks").read_text()


def test_it_is_refused_with_what_to_do_and_free_again_it_is_not(image: Path, tmp_path: Path) -> None:
    host = host_at(tmp_path)
    with opened(image):
        with pytest.raises(Refused) as refused:
            refuse_if_open_elsewhere("vm", host, host.hypervisor.look("vm"), [str(image)])
        assert refused.value.code == 18
        assert f"vm does not run on n1, and its image {image} is open in a QEMU" in refused.value.sentence
    refuse_if_open_elsewhere("vm", host, None, [str(image), str(image.with_name("none"))])


def test_its_own_qemu_has_it_open_where_it_runs_here(image: Path, tmp_path: Path) -> None:
    host = host_at(tmp_path)
    off = host.hypervisor.look("vm")
    assert off is not None
    with opened(image):
        refuse_if_open_elsewhere("vm", host, replace(off, power=Power.RUNNING), [str(image)])


def host_with(folder: Path, image: Path, device: str = "disk", sign: str = "") -> tuple[Host, View]:
    """Where the machine is off, with one disk, and nothing else is in a restore's way."""
    disk = f"<disk type='file' device='{device}'><source file='{image}'/><target dev='vda'/>{sign}</disk>"
    xml = f"<domain><name>vm</name><uuid>u</uuid><memory>1</memory><devices>{disk}</devices></domain>"
    off = View(Power.OFF, stopped_by_itself=False, moved_away=False, xml=xml, description=describe(xml))
    answers = SimpleNamespace(
        look=lambda _name: off,
        has_managed_save=lambda _name: False,
        name_of_uuid=lambda _uuid: "vm",
        disks_of_others=lambda _name: {},
    )
    return host_at(folder, answers), off


@pytest.mark.parametrize("named_by", ["the set", "libvirt"])
def test_a_restore_replaces_none_under_a_machine_that_runs_elsewhere(
    image: Path, tmp_path: Path, named_by: str
) -> None:
    order, elsewhere = order_in(tmp_path, Mode.RESTORING, power=Power.OFF), tmp_path / "images/other.qcow2"
    if named_by == "libvirt":
        order = order.model_copy(update={"disks": (order.disks[0].model_copy(update={"path": str(elsewhere)}),)})
    host, off = host_with(tmp_path, image)
    order = order.model_copy(update={"restoring": SimpleNamespace(alone=False)})
    with opened(image), pytest.raises(Refused, match="is open in a QEMU or one of its tools; nothing was touched"):
        refuse_obstacles(order, host, off)
    refuse_obstacles(order, host, off)


@pytest.mark.parametrize(("device", "sign"), [("cdrom", ""), ("disk", "<readonly/>")])
def test_a_restore_goes_on_where_others_read_what_is_not_the_machines_own_data(
    image: Path, tmp_path: Path, device: str, sign: str
) -> None:
    """All machines of a cluster may have one and the same CD-ROM."""
    iso = image.rename(image.with_name("install.qcow2"))
    order = order_in(tmp_path, Mode.RESTORING, power=Power.OFF)
    order = order.model_copy(update={"restoring": SimpleNamespace(alone=False)})
    host, off = host_with(tmp_path, iso, device, sign)
    with opened(iso, "-r"):
        refuse_obstacles(order, host, off)


# a snapshot


def overlay_over(image: Path, name: str) -> Path:
    overlay = image.with_name(name)
    programs.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", overlay])
    return overlay


def ask_snapshot(image: Path, folder: Path) -> None:
    host = host_at(folder)
    refuse_if_written_elsewhere("vm", host, host.hypervisor.look("vm"), [str(image)])


def test_who_only_reads_an_image_is_not_in_the_way_of_its_snapshot(image: Path, tmp_path: Path) -> None:
    """A template whose clones run, here or elsewhere; or a tool that looks."""
    with opened(image, "-r"):
        ask_snapshot(image, tmp_path)
    clone = overlay_over(image, "clone.qcow2")
    with opened(clone):
        until("the template to be read", lambda: is_locked(image), 20, step=0.02)
        ask_snapshot(image, tmp_path)


@pytest.mark.parametrize("writes_to", ["the image", "an overlay of ours"])
def test_who_writes_to_an_image_or_over_it_is_in_the_way_of_its_snapshot(
    image: Path, tmp_path: Path, writes_to: str
) -> None:
    written = image if writes_to == "the image" else overlay_over(image, overlay_name(image.name, TIMESTAMP))
    with opened(written), pytest.raises(Refused, match=f"its image {written} is open in a QEMU") as refused:
        ask_snapshot(image, tmp_path)
    assert refused.value.code == 18
    ask_snapshot(image, tmp_path)
    host = host_at(tmp_path)
    refuse_if_written_elsewhere("vm", host, None, [str(tmp_path / "no/such.qcow2")])


def test_the_machines_own_qemu_writes_to_it_where_it_runs_here(image: Path, tmp_path: Path) -> None:
    host = host_at(tmp_path)
    off = host.hypervisor.look("vm")
    assert off is not None
    with opened(image):
        refuse_if_written_elsewhere("vm", host, replace(off, power=Power.RUNNING), [str(image)])
