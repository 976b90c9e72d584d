"""Which set a leaf means, on real files: where it is missing, torn, another's or at two places, that is said."""

import json
from pathlib import Path

import pytest
from blake3 import blake3

from nodeagent.operations.finding import FoundSet, find_set
from tests.backup_root import PLACE, make_set
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf, Wishes

LEAF = "20260101T000000Z"
LDIF = b"dn: sstVirtualMachine=vm\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A backup root with one set of the machine vm."""
    root = tmp_path / "backup"
    directory = make_set(root, "vm", LEAF, LDIF)
    with (directory / f"disk.qcow2.{LEAF}").open("wb") as disk:
        disk.truncate(1 << 30)
    return root


def found(root: Path, machine: str = "vm", **of_leaf: object) -> FoundSet:
    leaf = Leaf(f"ou={LEAF}", machine, LEAF, "unretainingSmallFiles", "0", **of_leaf)  # type: ignore[arg-type]
    return find_set(leaf, str(root), [str(root)])


def refused(root: Path, machine: str = "vm", **of_leaf: object) -> tuple[ReturnValue, str]:
    with pytest.raises(Refused) as raised:
        found(root, machine, **of_leaf)
    assert raised.value.sentence.startswith(f"{machine}: ")
    return raised.value.code, raised.value.sentence


def manifest(root: Path) -> Path:
    return root / PLACE / "vm" / LEAF / f"manifest.json.{LEAF}"


def test_a_set_is_found_by_its_place_or_where_the_leaf_says(root: Path) -> None:
    directory = root / PLACE / "vm" / LEAF
    assert Path(found(root).directory) == directory
    digest = f"blake3:{blake3(manifest(root).read_bytes()).hexdigest()}"
    by_leaf = found(root, set_directory=str(directory), manifest_digest=digest)
    assert by_leaf == found(root)
    assert by_leaf.place == tuple(PLACE.split("/"))
    assert by_leaf.text("ldif") == LDIF.decode()
    other = found(root, "copy", wishes=Wishes(original="vm"))
    assert other.directory == by_leaf.directory


@pytest.mark.parametrize("directory", ["relative/vm-persistent/p/vm/x", "/a/../b/c/d/e/f", "/too/short"])
def test_a_leaf_that_names_no_place_of_a_set_is_refused(directory: str, root: Path) -> None:
    code, sentence = refused(root, set_directory=directory)
    assert code is ReturnValue.PATH_NOT_ALLOWED
    assert repr(directory) in sentence


def test_a_set_at_two_places_is_not_chosen_from(root: Path) -> None:
    make_set(root, "vm", LEAF, LDIF, place="vm-persistent/pool-02")
    code, sentence = refused(root)
    assert code is ReturnValue.MISSING_FILES
    assert "lies at several places: " in sentence
    assert "pool-02" in sentence


def test_what_is_no_directory_among_the_pools_is_nobodys_set(root: Path) -> None:
    (root / "vm-persistent" / "a-note").write_text("somebody's")
    (root / "vm-persistent" / "linked").symlink_to(root / PLACE)
    assert Path(found(root).directory) == root / PLACE / "vm" / LEAF


def test_a_set_that_was_never_finished_or_was_removed_is_missing(root: Path) -> None:
    directory = manifest(root).parent
    manifest(root).unlink()
    assert refused(root) == (
        ReturnValue.MISSING_FILES,
        f"vm: the set of vm at {LEAF} is not below {root}; set vmkeepSetDirectory on the leaf",
    )
    code, sentence = refused(root, set_directory=str(directory))
    assert code is ReturnValue.MISSING_FILES
    assert "it was removed, or never finished, or its storage is not mounted on this node" in sentence


def test_a_set_behind_a_link_is_not_looked_for(root: Path) -> None:
    directory = manifest(root).parent
    directory.rename(root / "moved")
    directory.symlink_to(root / "moved")
    code, sentence = refused(root, set_directory=str(directory))
    assert code is ReturnValue.PATH_NOT_ALLOWED
    assert "links are not followed" in sentence


def test_a_manifest_that_cannot_be_read_or_is_not_the_one_written_is_refused(root: Path) -> None:
    digest = f"blake3:{blake3(manifest(root).read_bytes()).hexdigest()}"
    text = manifest(root).read_text()
    manifest(root).write_text(text[:-20])
    code, sentence = refused(root)
    assert code is ReturnValue.MISSING_FILES
    assert "the manifest in" in sentence
    code, sentence = refused(root, manifest_digest=digest)
    assert code is ReturnValue.CORRUPT_IMAGE
    assert "somebody changed the set" in sentence


def test_a_set_of_another_machine_is_not_taken_for_this_ones(root: Path) -> None:
    code, sentence = refused(root, "other", set_directory=str(manifest(root).parent))
    assert code is ReturnValue.MISSING_FILES
    assert f"is a backup of vm at {LEAF}, not of other" in sentence


def test_a_file_that_is_missing_or_of_another_length_is_named(root: Path) -> None:
    disk = manifest(root).parent / f"disk.qcow2.{LEAF}"
    disk.write_bytes(b"short")
    code, sentence = refused(root)
    assert (code, f"{disk} has 5 bytes, {1 << 30} were backed up" in sentence) == (ReturnValue.CORRUPT_IMAGE, True)
    disk.unlink()
    code, sentence = refused(root)
    assert (code, f"{disk} is missing" in sentence) == (ReturnValue.MISSING_FILES, True)


def test_a_text_that_reads_otherwise_than_backed_up_is_not_used(root: Path) -> None:
    (manifest(root).parent / f"vm.ldif.{LEAF}").write_bytes(LDIF.upper())
    with pytest.raises(Refused, match="is not what was backed up: it reads as blake3:"):
        found(root).text("ldif")


def test_a_manifest_with_two_files_of_one_kind_says_so(root: Path) -> None:
    content = json.loads(manifest(root).read_text())
    content["files"].append(content["files"][0])
    manifest(root).write_text(json.dumps(content))
    with pytest.raises(Refused, match="names 2 files of kind ldif, not one"):
        found(root).one("ldif")
