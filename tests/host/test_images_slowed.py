"""qemu-img within a bandwidth: an image nobody has open becomes whole, or is written back, no faster than asked."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import programs
from nodeagent.host.images import Images

MIB_A_SECOND, WRITTEN_MIB = 4, 8
LEAST_SECONDS = WRITTEN_MIB / MIB_A_SECOND * 0.6


def qemu_img(*arguments: object) -> None:
    programs.run(["qemu-img", *arguments])


def write(image: Path, pattern: int) -> None:
    programs.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P {pattern} 0 {WRITTEN_MIB}M", image])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An image whose name would end an option, were it not escaped."""
    folder = tmp_path / "a,b=c"
    folder.mkdir()
    base = folder / "base,x-bps-write=1.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "32M")
    write(base, 1)
    return base


def over(base: Path) -> Path:
    image = base.parent / "image,file.driver=null-co.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image)
    return image


def seconds(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def test_an_image_becomes_whole_within_its_bandwidth(base: Path) -> None:
    image = over(base)
    assert seconds(lambda: Images().flatten(image, MIB_A_SECOND)) > LEAST_SECONDS
    qemu_img("compare", "-q", "-f", "qcow2", "-F", "qcow2", base, image)
    base.unlink()
    qemu_img("check", "-q", "-f", "qcow2", image)


def test_an_overlay_is_written_back_within_its_bandwidth(base: Path) -> None:
    image = over(base)
    write(image, 2)
    assert seconds(lambda: Images().commit(image, MIB_A_SECOND)) > LEAST_SECONDS
    qemu_img("compare", "-q", "-f", "qcow2", "-F", "qcow2", base, image)
