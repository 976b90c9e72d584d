"""What a restore meets in retain and in libvirt that is not as it should be: refused with the file and the mend."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import programs
from nodeagent.host.images import Images
from nodeagent.operations.aside import Aside
from nodeagent.operations.overlays import overlay_name
from nodeagent.operations.restore_survey import refuse_obstacles, survey_restore
from nodeagent.operations.saved_machine import SavedMachine
from nodeagent.operations.unretain import unretain_large_files
from nodeagent.order import Order, OrderDisk
from nodeagent.steps import LEFT
from tests.orders import disk_in, host_at, order_in
from tests.pure.test_restore_surveys import LEAF, MACHINE, Restored
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode


@pytest.fixture
def restored(tmp_path: Path) -> Restored:
    restored = Restored(tmp_path)
    restored.make()
    return restored


def refused(ask: Callable[[], object]) -> tuple[ReturnValue, str]:
    with pytest.raises(Refused) as raised:
        ask()
    return raised.value.code, raised.value.sentence


# the texts


@pytest.mark.parametrize(
    ("kind", "code"), [("xml", ReturnValue.CANNOT_READ_XML), ("ldif", ReturnValue.CANNOT_COPY_BACKEND_FILE)]
)
def test_an_edited_text_that_cannot_be_read_is_named(kind: str, code: ReturnValue, restored: Restored) -> None:
    text = restored.retain / f"{MACHINE}.{kind}.{LEAF}"
    text.write_bytes("wörds".encode("latin-1"))
    assert refused(restored.ask_large) == (code, f"m: {text} cannot be read: {decoding_error(text)}")
    text.write_bytes(b" " * (5 << 20))
    found, sentence = refused(restored.ask_large)
    assert (found, "larger than" in sentence) == (code, True)
    text.unlink()
    assert refused(restored.ask_large) == (
        ReturnValue.MISSING_FILES,
        f"m: {text} is missing; back out and begin again",
    )


def decoding_error(path: Path) -> str:
    with pytest.raises(UnicodeDecodeError) as raised:
        path.read_bytes().decode()
    return str(raised.value)


@pytest.mark.parametrize(
    ("set_node", "conflicts", "told"),
    [
        ("", "", "; back out"),
        ("n1", "[]", "; back out"),
        ("n2", "", "; back out"),  # it made the set
        ("n2", "[]", f", n2 began it: set sstNode to n2, back out, and set it back once that has cleared m/{LEAF} in"),
    ],
)
def test_a_restore_that_nothing_is_held_of_is_begun_anew_where_it_can_be(
    restored: Restored, set_node: str, conflicts: str, told: str
) -> None:
    restored.saved.host.unretained.forget(restored.order)
    plan: Any = SimpleNamespace(retain_root=restored.order.retain_root)
    leaf = replace(restored.saved.leaf, set_node=set_node, conflicts=conflicts)
    code, sentence = refused(lambda: replace(restored.saved, leaf=leaf, plan=plan).note)
    assert code is ReturnValue.MISSING_FILES
    assert f"m: n1 holds nothing of this restore{told}" in sentence
    assert "; then begin with unretainSmallFiles, on the node that sstNode names now" in sentence


# the memory


def test_a_memory_that_is_missing_or_none_is_named(restored: Restored) -> None:
    state = restored.retain / "state"
    ask = lambda: restored.saved.refuse_forbidden_memory(restored.retain, "state")  # noqa: E731
    assert refused(ask) == (ReturnValue.MISSING_FILES, f"m: {state} is missing; back out and begin again")
    state.write_bytes(b"LibvirtQemudPart")
    code, sentence = refused(ask)
    assert code is ReturnValue.CANNOT_READ_STATE
    assert "no state file that was written to its end" in sentence
    assert "or without the memory (sstRestoreVMWithoutState TRUE on the leaf)" in sentence
    state.unlink()
    state.symlink_to("/etc/passwd")
    assert refused(ask)[0] is ReturnValue.CANNOT_READ_STATE, "a link is not followed"


# the images


def with_real_images(restored: Restored) -> SavedMachine:
    return replace(restored.saved, host=replace(restored.saved.host, images=Images()))


def test_an_image_in_retain_that_is_gone_damaged_or_not_whole_is_refused(restored: Restored) -> None:
    image = restored.retain / "disk"
    ask = lambda: survey_restore(with_real_images(restored), restored.order, str(restored.folder))  # noqa: E731
    assert refused(ask) == (
        ReturnValue.MISSING_FILES,
        f"m: {image} is missing; ask for unretainLargeFiles again",
    )
    image.write_bytes(b"no image at all")
    assert refused(ask) == (ReturnValue.CORRUPT_IMAGE, f"m: {image} is not a qcow2 image")
    image.unlink()
    programs.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/b", "-F", "qcow2", image, "1M"])
    assert refused(ask) == (ReturnValue.CORRUPT_IMAGE, f"m: {image} lies over /b")
    image.unlink()
    programs.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"])
    assert [disk.size for disk in ask().disks] == [1 << 20]


def test_a_file_that_went_missing_in_the_set_while_it_is_brought_is_named(restored: Restored) -> None:
    order = restored.ask_large()
    fetch = next(step for step in unretain_large_files(order, restored.saved.host) if "disk" in step.doing)
    fetch.apply({})
    disk = restored.folder / "backup/vm-persistent/p" / MACHINE / LEAF / "disk"
    disk.write_bytes(disk.read_bytes()[::-1].replace(b"x", b"y", 1))
    code, sentence = refused(lambda: fetch.apply({}))
    assert code is ReturnValue.CORRUPT_IMAGE
    assert f"{disk} is damaged: it reads as blake3:" in sentence
    assert not (restored.retain / "disk").exists()
    disk.unlink()
    assert refused(lambda: fetch.apply({})) == (
        ReturnValue.MISSING_FILES,
        f"m: {disk} is missing; restore from another set",
    )
    assert not (restored.retain / "disk").exists()


# what stands in the way


def in_the_way(restored: Restored, **said: Any) -> tuple[ReturnValue, str]:
    """What is said where libvirt answers so."""
    restored.hypervisor.xml = restored.xml()
    for verb, answer in said.items():
        setattr(restored.hypervisor, verb, lambda _asked, answer=answer: answer)
    order = restored.order.model_copy(update={"disks": (OrderDisk(target="vda", path=str(restored.image), kept="d"),)})
    host = restored.saved.host
    view = replace(host.hypervisor.look(MACHINE), moved_away=said.get("moved", False))  # type: ignore[type-var]
    return refused(lambda: refuse_obstacles(order, host, view))


def test_a_machine_that_moved_away_is_not_replaced_here(restored: Restored) -> None:
    assert "m: it has moved away from n1" in in_the_way(restored, moved=True)[1]


def test_a_managed_save_would_meet_other_disks(restored: Restored) -> None:
    code, sentence = in_the_way(restored, has_managed_save=True)
    assert code is ReturnValue.WRONG_STATE_INFORMATION
    assert "virsh managedsave-remove m" in sentence


def test_a_uuid_or_an_image_of_another_machine_is_not_taken(restored: Restored) -> None:
    assert "belongs to other here; change one of the two" in in_the_way(restored, name_of_uuid="other")[1]
    code, sentence = in_the_way(restored, name_of_uuid=MACHINE, disks_of_others={str(restored.image): "other"})
    assert code is ReturnValue.UNEXPECTED_IMAGE
    assert f"the image {restored.image} of vda belongs to other" in sentence


def test_another_machine_of_that_name_is_not_replaced(restored: Restored) -> None:
    restored.xml = lambda *_: Restored.xml(restored).replace("1111-2222", "1111-9999")  # type: ignore[method-assign]
    assert "another machine of that name; rename or undefine that one first" in in_the_way(restored)[1]


def test_an_overlay_that_was_not_written_back_comes_first(restored: Restored) -> None:
    overlay = restored.image.with_name(overlay_name(restored.image.name, LEAF))
    restored.xml = lambda *_: Restored.xml(restored, overlay)  # type: ignore[method-assign]
    code, sentence = in_the_way(restored)
    assert code is ReturnValue.UNMERGED_IMAGE
    assert f"vda writes to {overlay}" in sentence


def test_what_an_earlier_restore_could_not_put_back_is_not_written_over(restored: Restored) -> None:
    (restored.retain / "before").mkdir()
    (restored.retain / "before" / "vda").write_text("the machine's own")
    code, sentence = in_the_way(restored)
    assert code is ReturnValue.RETAIN_NOT_EMPTY
    assert f"{restored.retain}/before holds what an earlier restore replaced (vda)" in sentence


# what was kept aside, and is gone


def test_with_the_kept_images_removed_the_paths_of_the_backups_images_are_told(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    image = tmp_path / "images" / "d.qcow2"
    image.write_bytes(b"the backup's")

    def order(inode: int, path: Path = image) -> Order:
        disk = disk_in(tmp_path).model_copy(update={"inode": inode, "path": str(path)})
        return order_in(tmp_path, Mode.RESTORING, disks=(disk,), power=Power.OFF)

    host = host_at(tmp_path, SimpleNamespace())
    facts = Aside(order(image.stat().st_ino), host).place_back({})
    assert f"was removed by somebody: the backup's images stay at {image}" in str(facts[LEFT])
    assert Aside(order(1), host).place_back({}) == {}, "somebody put another there"
    assert Aside(order(1, tmp_path / "gone" / "d.qcow2"), host).place_back({}) == {}, "the directory is gone too"
    assert not Aside(order(1), host).is_in_place()
