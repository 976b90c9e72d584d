"""Looks at a backup set with eyes of its own: names, digests of whole files, images by qemu-img."""

import json
import subprocess
from pathlib import Path

from blake3 import blake3

from lab.machines import Machine


def directory_of(machine: Machine, leaf: str) -> Path:
    """Where the protocol says that the set lies, from the first disk's path below the image root."""
    vmtype, pool = machine.disks[0].relative_to(machine.node.images).parts[:2]
    return machine.node.backup / vmtype / pool / machine.name / leaf


def manifest_of(folder: Path) -> Path:
    return folder / f"manifest.json.{folder.name}"


def manifest(folder: Path) -> dict:
    return json.loads(manifest_of(folder).read_text())


def assert_digests(folder: Path) -> None:
    """Every file is in the manifest and the other way round, with its length and digest."""
    said = {file["name"]: (file["size"], file["digest"]) for file in manifest(folder)["files"]}
    seen = {
        path.name: (path.stat().st_size, "blake3:" + blake3(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
        if not path.name.startswith("manifest.json.")
    }
    assert said == seen


def image_info(path: Path) -> dict:
    printed = subprocess.run(
        ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", str(path)],
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout
    return json.loads(printed)


def data_of(machine: Machine) -> str:
    """A digest of what was put on its first disk before it ran and is not its own to change, as the guest reads it."""
    image, spec = machine.disks[0], machine.spec
    raw = image.with_suffix(".read")
    argv = ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(image), str(raw)]
    try:
        subprocess.run(argv, check=True, capture_output=True, timeout=60)
        with raw.open("rb") as read:
            read.seek(spec.content_start << 20)
            return blake3(read.read(spec.content_mib << 20)).hexdigest()
    finally:
        raw.unlink(missing_ok=True)


def assert_whole(path: Path) -> None:
    assert "backing-filename" not in image_info(path), path
