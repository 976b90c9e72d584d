"""Image headers by our own eyes: what QEMU would follow to another file is refused or told, for any bytes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab import programs
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import open_folder
from nodeagent.host.images import Images
from nodeagent.host.qcow2 import Header
from tests import crafted_images
from tests.crafted_images import CRAFTED
from tests.watched_files import watched

HEADER = 1200  # bytes that a mutation may touch: fields, extensions, and the name below

SECTOR = 512  # what QEMU rounds sizes down to


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("headers")


@pytest.fixture(scope="module")
def real(folder: Path) -> list[bytes]:
    """Images of each kind that QEMU makes."""
    below = folder / "below.qcow2"
    programs.run(["qemu-img", "create", "-q", "-f", "qcow2", below, "1M"])
    over = ("-b", str(below), "-F", "qcow2")
    kinds = ((), over, ("-o", "compat=0.10"), ("-o", "compat=0.10", *over), ("-o", "extended_l2=on"))
    images = [crafted_images.plain(folder, *kind) for kind in kinds]
    return [*images, crafted_images.plain(folder, "-o", f"data_file={folder}/data")]


def header_of(folder: Path, image: bytes) -> Header:
    (folder / "image").write_bytes(image)
    with open_folder(folder, [str(folder)]) as opened:
        return Images().header(opened, "image")


def qemus_view(folder: Path) -> dict[str, Any] | None:
    """What qemu-img makes of the image; None where it refuses."""
    argv = [programs.locate("qemu-img"), "info", "--output=json", "-f", "qcow2", str(folder / "image")]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    return json.loads(told.stdout) if told.returncode == 0 else None


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_image_is_refused_or_says_what_it_lies_over(case: str, folder: Path, real: list[bytes]) -> None:
    make, reason = CRAFTED[case]
    outside = folder / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_text("of the host")
    image = make(real[0], str(outside / "secret").encode())
    with watched(outside) as seen:
        if reason == "lies over":
            assert header_of(folder, image).backing_file is not None
        else:
            with pytest.raises(HostFailure, match=reason):
                header_of(folder, image)
        assert seen.events() == set()


def test_every_image_that_qemu_makes_is_read_as_qemu_reads_it(folder: Path, real: list[bytes]) -> None:
    *ordinary, _ = real
    for image in ordinary:
        header = header_of(folder, image)
        view = qemus_view(folder)
        assert view is not None
        assert (header.virtual_size, header.backing_file) == (view["virtual-size"], view.get("backing-filename"))
        assert header.is_empty


_edge = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 72, 104, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1])
_field = st.tuples(st.sampled_from(range(0, 128, 4)), _edge.map(lambda number: number.to_bytes(8, "big")))
_half_field = st.tuples(st.sampled_from(range(0, 128, 4)), _edge.map(lambda number: number.to_bytes(8, "big")[4:]))
_bytes = st.tuples(st.integers(0, HEADER), st.binary(min_size=1, max_size=8))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.integers(0, 5),
    changes=st.lists(st.one_of(_field, _half_field, _bytes), max_size=4),
    length=st.one_of(st.none(), st.integers(0, HEADER)),
)
def test_whatever_the_bytes_are_nothing_that_qemu_would_follow_goes_untold(
    folder: Path, real: list[bytes], kind: int, changes: list[tuple[int, bytes]], length: int | None
) -> None:
    image = bytearray(real[kind])
    for at, new in changes:
        image[at : at + len(new)] = new
    try:
        header = header_of(folder, bytes(image[:length]))
    except HostFailure:
        return
    view = qemus_view(folder)
    if view is None:
        return
    assert view.get("backing-filename") == header.backing_file
    assert view["virtual-size"] == header.virtual_size // SECTOR * SECTOR
    assert "data-file" not in view["format-specific"]["data"]
