"""Paths of a set and its manifest: never two files of one name, never outside the roots, read back as written."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vmkeep.contract.errors import Refused
from vmkeep.contract.manifest import Manifest, SetFile
from vmkeep.contract.paths import MANIFEST_NAME, path_parts, set_paths

TIMESTAMP = "20260101T000000Z"
ROOTS = ("/var/retain", "/var/backup")
IMAGES = ("/var/virtualization",)
BASENAMES = st.sampled_from(
    ["disk.qcow2", "web.state", "web.xml", "vda.disk.qcow2", "vdb.disk.qcow2", MANIFEST_NAME, "x"]
)


def image(number: int, basename: str) -> str:
    return f"/var/virtualization/vm-persistent/pool/{number}/{basename}"


@given(st.lists(BASENAMES, min_size=1, max_size=6))
def test_no_two_files_of_a_set_have_one_name(basenames: list[str]) -> None:
    disks = [(f"vd{'abcdef'[number]}", image(number, name)) for number, name in enumerate(basenames)]
    try:
        paths = set_paths("web", TIMESTAMP, disks, ROOTS, IMAGES)
    except Refused as why:
        assert "cannot be told apart" in why.sentence
        return
    names = [paths.state, paths.xml, paths.ldif, paths.nvram, paths.tpm, MANIFEST_NAME]
    names += [paths.disk(target) for target, _ in disks]
    assert len(set(names)) == len(names)
    assert all(PurePosixPath(name).name == name for name in names)


def test_equal_basenames_in_different_directories_get_their_targets_in_front() -> None:
    disks = [("vda", image(1, "disk.qcow2")), ("vdb", image(2, "disk.qcow2")), ("vdc", image(3, "other.qcow2"))]
    paths = set_paths("web", TIMESTAMP, disks, ROOTS, IMAGES)
    assert [paths.disk(target) for target, _ in disks] == ["vda.disk.qcow2", "vdb.disk.qcow2", "other.qcow2"]


def test_a_set_lies_where_the_protocol_has_it() -> None:
    paths = set_paths("web", TIMESTAMP, [("vda", image(1, "disk.qcow2"))], ROOTS, IMAGES)
    assert str(paths.retain) == f"/var/retain/vm-persistent/pool/web/{TIMESTAMP}"
    assert str(paths.backup) == f"/var/backup/vm-persistent/pool/web/{TIMESTAMP}"
    assert paths.kept_name(paths.state) == f"web.state.{TIMESTAMP}"


@given(st.lists(st.text("ab./", max_size=6), max_size=6))
def test_the_two_parts_of_a_path_come_from_below_an_image_root_or_are_refused(parts: list[str]) -> None:
    try:
        found = path_parts("web", "/var/virtualization/vm-dynamic/" + "/".join(parts), IMAGES)
    except Refused as why:
        assert int(why.code) == 102
        return
    assert found[0] == "vm-dynamic"
    assert found[1] not in ("", ".", "..")
    assert "/" not in found[1]


@pytest.mark.parametrize(
    "path", ["disk.qcow2", "/etc/passwd", "/var/virtualization/disk", "/var/virtualization/x/pool/disk", "/var/virtual"]
)
def test_images_that_lie_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(Refused, match="does not lie at"):
        path_parts("web", path, IMAGES)


@pytest.mark.parametrize("machine", ["../evil", "a/b", ""])
def test_a_name_that_is_no_name_gets_no_paths(machine: str) -> None:
    with pytest.raises(Refused):
        set_paths(machine, TIMESTAMP, [("vda", image(1, "x"))], ROOTS, IMAGES)


def test_a_machine_without_disks_gets_no_paths() -> None:
    with pytest.raises(Refused, match="no disk"):
        set_paths("web", TIMESTAMP, [], ROOTS, IMAGES)


DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64).map("blake3:".__add__)
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)
FILES = st.builds(
    SetFile,
    name=NAMES,
    role=st.sampled_from(["state", "xml", "ldif", "disk", "nvram", "tpm"]),
    size=st.integers(min_value=0, max_value=1 << 60),
    digest=DIGESTS,
)


def manifest(files: tuple[SetFile, ...]) -> Manifest:
    return Manifest(
        machine="web",
        uuid="u",
        timestamp=TIMESTAMP,
        node="n1",
        power="running",
        method="save",
        consistency="state",
        files=files,
        versions={"vmkeep": "0.1.0"},
    )


@given(st.lists(FILES, max_size=5))
def test_a_manifest_is_read_back_as_it_was_written(files: list[SetFile]) -> None:
    written = manifest(tuple(files))
    assert Manifest.model_validate_json(written.to_json()) == written
    assert written.size == sum(file.size for file in files)


@pytest.mark.parametrize(
    "changes",
    [{"name": "../x"}, {"name": ""}, {"name": ".."}, {"digest": "sha256:00"}, {"size": -1}, {"role": "magic"}],
)
def test_a_manifest_never_names_a_file_elsewhere_or_without_a_digest(changes: dict[str, object]) -> None:
    good = {"name": "x", "role": "disk", "size": 1, "digest": "blake3:" + "0" * 64}
    with pytest.raises(ValidationError):
        SetFile.model_validate(good | changes)
