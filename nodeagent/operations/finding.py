"""Finds the set a restore or a deletion is about, and proves that it is whole and the one the directory means.

Reads only; called by the surveys. The manifest's own digest stands in the directory, so a set that somebody changed on
the storage, manifest and all, is not taken for the one that was made.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import PurePosixPath

from blake3 import blake3
from pydantic import ValidationError

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Folder, open_folder
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.manifest import Manifest, Role, SetFile
from vmkeep.contract.paths import MACHINE_TYPES, MANIFEST_NAME


@dataclass(frozen=True)
class FoundSet:
    """A set on the storage. `roots` are those its directory may lie below."""

    directory: PurePosixPath
    manifest: Manifest
    roots: Sequence[str]

    @property
    def place(self) -> tuple[str, str]:
        """(vmtype, storage pool) it lies below."""
        return self.directory.parts[-4], self.directory.parts[-3]

    def files(self, *roles: Role) -> list[SetFile]:
        """Its files of these roles, in the manifest's order."""
        return [file for file in self.manifest.files if file.role in roles]

    def one(self, role: Role) -> SetFile:
        """The one file of a role; Refused where the manifest names none."""
        found = self.files(role)
        if len(found) != 1:
            raise Refused(
                ReturnValue.MISSING_FILES,
                f"{self.manifest.machine}: the manifest in {self.directory} names {len(found)} files of kind {role}, "
                "not one; restore from another set",
            )
        return found[0]

    def opened(self) -> AbstractContextManager[Folder]:
        """Its directory."""
        return open_folder(self.directory, self.roots)

    def text(self, role: Role) -> str:
        """A small file's content, once its digest is seen to be the manifest's."""
        file = self.one(role)
        with self.opened() as folder:
            content = folder.read(file.name)
        found = f"blake3:{blake3(content).hexdigest()}"
        if found != file.digest:
            raise Refused(
                ReturnValue.CORRUPT_IMAGE,
                f"{self.manifest.machine}: {self.directory / file.name} is not what was backed up: "
                f"it reads as {found}, the manifest says {file.digest}; restore from another set",
            )
        return content.decode("utf-8", "strict")


def find_set(leaf: Leaf, backup_root: str, roots: Sequence[str]) -> FoundSet:
    """The set of a leaf; Refused where it is missing (37), incomplete (37), or not the one that was made (38)."""
    original = leaf.wishes.original or leaf.machine
    directory = _directory(leaf, original, backup_root, roots)
    text = _manifest_text(leaf, directory, roots)
    manifest = _read_manifest(leaf, directory, text)
    if (manifest.machine, manifest.timestamp) != (original, leaf.timestamp):
        raise Refused(
            ReturnValue.MISSING_FILES,
            f"{leaf.machine}: {directory} is a backup of {manifest.machine} at {manifest.timestamp}, "
            f"not of {original} at {leaf.timestamp}; correct vmkeepSetDirectory",
        )
    found = FoundSet(directory, manifest, roots)
    _refuse_if_incomplete(leaf, found)
    return found


def _directory(leaf: Leaf, original: str, backup_root: str, roots: Sequence[str]) -> PurePosixPath:
    """Where the leaf says, else the one place of the protocol where it lies."""
    if leaf.set_directory:
        directory = PurePosixPath(leaf.set_directory)
        if not directory.is_absolute() or ".." in directory.parts or len(directory.parts) < 6:
            raise Refused(
                ReturnValue.PATH_NOT_ALLOWED,
                f"{leaf.machine}: vmkeepSetDirectory is {leaf.set_directory!r}; it must be an absolute path of a set",
            )
        return directory
    found = places_of(PurePosixPath(backup_root), original, leaf.timestamp, roots)
    places = [place for place in found if f"{MANIFEST_NAME}.{leaf.timestamp}" in names_of(place, roots)]
    if len(places) != 1:
        where = "lies at several places: " + ", ".join(map(str, places)) if places else f"is not below {backup_root}"
        raise Refused(
            ReturnValue.MISSING_FILES,
            f"{leaf.machine}: the set of {original} at {leaf.timestamp} {where}; set vmkeepSetDirectory on the leaf",
        )
    return places[0]


def places_of(root: PurePosixPath, machine: str, timestamp: str, roots: Sequence[str]) -> list[PurePosixPath]:
    """Every directory below a backup root that is named for this backup, complete or not."""
    places = machine_places(root, machine, roots)
    return [place / timestamp for place in places if timestamp in names_of(place, roots)]


def machine_places(root: PurePosixPath, machine: str, roots: Sequence[str]) -> list[PurePosixPath]:
    """Every directory below a backup root that may hold sets of a machine, one a storage pool."""
    tops = [root / vmtype for vmtype in MACHINE_TYPES]
    return [top / pool / machine for top in tops for pool in names_of(top, roots)]


def names_of(path: PurePosixPath, roots: Sequence[str]) -> list[str]:
    """What lies in a directory; nothing where there is none."""
    try:
        with open_folder(path, roots) as folder:
            return folder.names()
    except (FileNotFoundError, HostFailure):  # a link or a plain file among the pools is nobody's set
        return []


def _manifest_text(leaf: Leaf, directory: PurePosixPath, roots: Sequence[str]) -> bytes:
    name = f"{MANIFEST_NAME}.{leaf.timestamp}"
    try:
        with open_folder(directory, roots) as folder:
            text = folder.read(name)
    except FileNotFoundError:
        raise Refused(
            ReturnValue.MISSING_FILES,
            f"{leaf.machine}: there is no backup at {directory} ({name} is missing): "
            "it was removed, or never finished, or its storage is not mounted on this node",
        ) from None
    except (HostFailure, OSError) as why:
        raise Refused(ReturnValue.PATH_NOT_ALLOWED, f"{leaf.machine}: {directory} cannot be read: {why}") from None
    digest = f"blake3:{blake3(text).hexdigest()}"
    if leaf.manifest_digest and leaf.manifest_digest != digest:
        raise Refused(
            ReturnValue.CORRUPT_IMAGE,
            f"{leaf.machine}: {directory / name} is not the manifest that was written: its digest is {digest}, "
            f"the leaf says {leaf.manifest_digest}; somebody changed the set; restore from another",
        )
    return text


def _read_manifest(leaf: Leaf, directory: PurePosixPath, text: bytes) -> Manifest:
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as why:
        raise Refused(
            ReturnValue.MISSING_FILES, f"{leaf.machine}: the manifest in {directory} cannot be read: {why}"
        ) from None


def _refuse_if_incomplete(leaf: Leaf, found: FoundSet) -> None:
    with found.opened() as folder:
        for file in found.manifest.files:
            status = folder.status(file.name)
            if status is None:
                code, what = ReturnValue.MISSING_FILES, "is missing"
            elif status.st_size != file.size:
                code, what = ReturnValue.CORRUPT_IMAGE, f"has {status.st_size} bytes, {file.size} were backed up"
            else:
                continue
            raise Refused(code, f"{leaf.machine}: {found.directory / file.name} {what}; restore from another set")
