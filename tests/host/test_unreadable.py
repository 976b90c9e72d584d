"""Files of ours that somebody wrote over, cut short or flipped a bit in: said in words, and never taken for whole."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import programs
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Folder, open_folder
from nodeagent.host.images import Images
from nodeagent.host.state_file import description_inside
from nodeagent.operations.choosing import as_made
from nodeagent.operations.making import NAME, read_making
from nodeagent.unretained import Unretained
from tests.crafted_images import patched
from tests.orders import host_at, order_in
from vmkeep.contract.modes import Mode

REFCOUNT_TABLE_AT = 48  # of a qcow2 header


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with open_folder(tmp_path, [str(tmp_path)]) as folder:
        yield folder


# images


def test_a_damaged_image_is_told_from_a_whole_one(tmp_path: Path) -> None:
    image = tmp_path / "d.qcow2"
    programs.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"])
    Images().check(image)
    image.write_bytes(patched(image.read_bytes(), REFCOUNT_TABLE_AT, "Q", 1 << 40))
    with pytest.raises(HostFailure, match=r"^the image is damaged: /usr/bin/qemu-img check .* failed: "):
        Images().check(image)


# state files


def state_file(folder: Folder, inside: bytes, magic: bytes = b"LibvirtQemudSave", version: int = 2) -> None:
    header = struct.pack("=16sII", magic, version, len(inside)).ljust(92, b"\0")
    (folder.path / "vm.state").write_bytes(header + inside)


def inside(folder: Folder) -> str:
    with folder.opened("vm.state") as descriptor:
        return description_inside(descriptor, "vm.state")


def test_the_description_inside_a_state_file_is_read_up_to_its_end(folder: Folder) -> None:
    state_file(folder, "<domain>ü</domain>\0<cookie/>\0".encode())
    assert inside(folder) == "<domain>ü</domain>"
    state_file(folder, b"<domain")
    assert inside(folder) == "", "without an end it is none"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"inside": b"", "magic": b"LibvirtQemudPart"}, "no state file that was written to its end"),
        ({"inside": b"", "version": 3}, "of version 3; (1, 2) are known"),
        ({"inside": b"<domain>\xff</domain>\0"}, "not UTF-8"),
    ],
    ids=["unfinished", "of tomorrow", "no text"],
)
def test_a_state_file_that_is_none_of_ours_is_refused(content: dict[str, object], why: str, folder: Folder) -> None:
    state_file(folder, **content)  # type: ignore[arg-type]
    with pytest.raises(HostFailure) as raised:
        inside(folder)
    assert str(raised.value).startswith("vm.state ")
    assert why in str(raised.value)


def test_a_state_file_that_claims_a_huge_description_is_not_read(folder: Folder) -> None:
    (folder.path / "vm.state").write_bytes(struct.pack("=16sII", b"LibvirtQemudSave", 2, 1 << 31).ljust(92, b"\0"))
    with pytest.raises(HostFailure, match=f"claims a description of {1 << 31} bytes"):
        inside(folder)
    os.truncate(folder.path / "vm.state", 40)
    with pytest.raises(HostFailure, match="no state file"):
        inside(folder)


# notes


def test_notes_of_a_snapshot_that_cannot_be_read_fail_with_the_place(folder: Folder) -> None:
    with pytest.raises(HostFailure, match=r"holds no backup in the making \(\.manifest\.making is missing\)"):
        read_making(folder)
    for text in (b"", b"{}", b'{"machine": "vm"', b"\xff"):
        (folder.path / NAME).write_bytes(text)
        with pytest.raises(HostFailure, match=rf"^{folder.path / NAME} cannot be read: "):
            read_making(folder)


def test_a_merge_without_readable_notes_is_known_to_make_no_set(tmp_path: Path) -> None:
    order = order_in(tmp_path, Mode.MERGING)
    retain = Path(order.paths.retain)
    assert as_made(order, host_at(tmp_path)).unmade == f"{retain} is gone"
    retain.mkdir(parents=True)
    (retain / NAME).write_text("{")
    assert as_made(order, host_at(tmp_path)).unmade.startswith(f"{retain / NAME} cannot be read: ")


def test_a_note_of_a_restore_that_cannot_be_read_is_passed_over_and_stays(tmp_path: Path) -> None:
    notes, order = Unretained(tmp_path), order_in(tmp_path, Mode.UNRETAINING_SMALL_FILES)
    notes.note(order)
    [note] = tmp_path.glob("*.unretained")
    torn = tmp_path / "vm2.20260101T000000Z.unretained"
    for content in (note.read_bytes()[:-5], b"\xff\xfe", b""):
        torn.write_bytes(content)
        assert notes.all() == [order]
        assert notes.find("vm2", "20260101T000000Z") is None
    assert torn.exists()
    notes.forget(order)
    notes.forget(order)
    assert notes.all() == []
