"""Retain: carry the set from retain to the backup directory, publish its manifest, leave nothing behind.

    directory → one step a file → manifest → clear

On the same filesystem a file is given its new name, at any size in the same time; to another it is copied with its
digest on the way. A set is visible only with its manifest, which comes last; then what lies in retain is removed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath

from blake3 import blake3
from pydantic import ValidationError

from nodeagent.host.copying import Content, Pace, copy_file, digest_file
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, Folder, make_folder, open_folder, remove_empty
from nodeagent.operations.following import StillOurs
from nodeagent.operations.making import NAME as MAKING_NAME
from nodeagent.operations.making import MadeFile, Making, read_making
from nodeagent.order import Order
from nodeagent.steps import NO_FACTS, Facts, Host, Step, access
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.manifest import Manifest
from vmkeep.contract.paths import MANIFEST_NAME

_PRIVATE = Access(mode=0o600)
_SECRET_ROLES = ("state", "tpm", "nvram", "xml")  # the XML may hold console passwords


def retain(order: Order, host: Host) -> tuple[Step, ...]:
    """The steps of a retain; where an earlier attempt came as far as publishing, what is left of them."""
    carrying = _Carrying(order, host)
    clear = Step("clear", "clear the retain directory", ReturnValue.RETAIN_NOT_EMPTY, carrying.clear)
    if order.published:
        look = Step("published", "read the published manifest", ReturnValue.MISSING_FILES, carrying.read_published)
        return (look, clear)
    files = (
        Step(f"carry {name}", f"carry {name} to the backup directory", code, partial(carrying.carry, name))
        for name, code in carrying.names()
    )
    return (
        Step("directory", "make the backup directory", ReturnValue.CANNOT_CREATE_DIRECTORY, carrying.make_directory),
        *files,
        Step("manifest", "publish the set", ReturnValue.CANNOT_WRITE_TO_BACKUP, carrying.publish),
        clear,
    )


class _Carrying:
    """One set on its way. Each verb may be repeated."""

    def __init__(self, order: Order, host: Host) -> None:
        self._order = order
        self._host = host
        self._paths = order.paths
        self._still_ours = StillOurs(order, host)

    def names(self) -> list[tuple[str, ReturnValue]]:
        """Every file of the set by its name in retain, small ones first, each with what its failing is called."""
        paths, order = self._paths, self._order
        small = [(paths.xml, ReturnValue.CANNOT_COPY_XML), (paths.ldif, ReturnValue.CANNOT_COPY_BACKEND_FILE)]
        small += [(item.kept, ReturnValue.CANNOT_COPY_FILE) for item in order.firmware]
        large = [(paths.state, ReturnValue.CANNOT_COPY_FILE)]
        return [*small, *large, *((disk.kept, ReturnValue.CANNOT_COPY_IMAGE) for disk in order.disks)]

    def make_directory(self, _facts: Facts) -> Facts:
        """Make the backup directory, with the plan's owner and mode."""
        with make_folder(self._paths.backup, self._host.roots, access(self._order.directories)) as backup:
            backup.sync()
        return NO_FACTS

    def carry(self, name: str, _facts: Facts) -> Facts:
        """One file: renamed or copied, and its digest known."""
        self._still_ours.ask()
        kept = self._paths.kept_name(name)
        with self._folders() as (source, backup):
            made = self._made(source, name)
            self._refuse_if_in_use(source, made)
            if source.device == backup.device or not source.exists(name):  # merge may have copied it there
                content = self._rename(source, backup, made, kept)
            else:
                content = self._copy(source, backup, made, kept)
            backup.set_access(kept, _PRIVATE if made.role in _SECRET_ROLES else access(self._order.files))
            backup.sync()
        return {f"{name} size": content.size, f"{name} digest": content.digest}

    def _refuse_if_in_use(self, source: Folder, made: MadeFile) -> None:
        """A live image that still lies over this one would lose its data with it."""
        if made.role != "disk" or made.original_path is None:
            return
        path = PurePosixPath(made.original_path)
        try:
            backing = self._host.header(path).backing_file
        except FileNotFoundError:
            return
        if backing == str(source.path / made.name):
            raise Refused(
                ReturnValue.UNMERGED_IMAGE,
                f"{self._order.machine}: the image {path} still lies over {backing}; merge before retain",
            )

    def _rename(self, source: Folder, backup: Folder, made: MadeFile, kept: str) -> Content:
        """Give it its name in the set. It keeps its old one until the set is published."""
        if source.exists(made.name):
            source.link_to(made.name, backup, kept)
        elif not backup.exists(kept):
            raise HostFailure(f"{made.name} is neither in retain nor in the backup directory")
        self._host.progress(backup_size(backup, kept))
        if made.digest is not None and made.size is not None:
            return Content(made.size, made.digest)
        return digest_file(backup, kept, pace=self._pace)

    def _copy(self, source: Folder, backup: Folder, made: MadeFile, kept: str) -> Content:
        backup.remove(kept)  # of an attempt that did not live to note its digest
        content = copy_file((source, made.name), (backup, kept), _PRIVATE, self._still_ours, self._pace)
        if made.digest is not None and made.digest != content.digest:
            backup.remove(kept)
            raise HostFailure(f"{made.name} reads as {content.digest}, and read as {made.digest} when it was made")
        return content

    @property
    def _pace(self) -> Pace:
        return Pace(self._order.bandwidth_copy << 20, self._host.stop)

    def publish(self, facts: Facts) -> Facts:
        """Write the manifest: from now on this is a set."""
        self._still_ours.ask()
        with self._folders() as (source, backup):
            making = self._read_making(source)
            files = [
                file.to_set_file(
                    self._paths.kept_name(file.name),
                    Content(int(facts[f"{file.name} size"]), str(facts[f"{file.name} digest"])),
                )
                for file in making.files
            ]
            manifest = making.manifest(files)
            text = manifest.to_json().encode()
            backup.write(self._paths.kept_name(MANIFEST_NAME), text, access(self._order.files))
        return _figures(manifest, text)

    def read_published(self, _facts: Facts) -> Facts:
        """What an earlier attempt did not live to report."""
        with open_folder(self._paths.backup, self._host.roots) as backup:
            text = backup.read(self._paths.kept_name(MANIFEST_NAME))
        try:
            return _figures(Manifest.model_validate_json(text), text)
        except ValidationError as why:
            raise HostFailure(f"{self._paths.backup} has a manifest that cannot be read: {why}") from None

    def clear(self, _facts: Facts) -> Facts:
        """Remove what is left in retain: second names, copied files, the notes."""
        self._still_ours.ask()
        try:
            with open_folder(self._paths.retain, self._host.roots) as source:
                for name in (*(name for name, _ in self.names()), MAKING_NAME):
                    source.remove(name)
                left = source.names()
        except FileNotFoundError:
            return NO_FACTS
        if left:
            raise HostFailure(
                f"{self._paths.retain} also holds {', '.join(left)}, which is not ours; look at it and remove it"
            )
        remove_empty(self._paths.retain, self._paths.retain_root, self._host.roots)
        return NO_FACTS

    def _made(self, source: Folder, name: str) -> MadeFile:
        for file in self._read_making(source).files:
            if file.name == name:
                return file
        raise HostFailure(
            f"the notes of the snapshot in {source.path} name no {name}: the machine's disks have changed since; "
            "correct ou=devices, or back the machine up again"
        )

    def _read_making(self, source: Folder) -> Making:
        making = read_making(source)
        if making.machine != self._order.machine or making.timestamp != self._order.timestamp:
            raise HostFailure(f"{source.path / MAKING_NAME} speaks of {making.machine} at {making.timestamp}")
        return making

    @contextmanager
    def _folders(self) -> Iterator[tuple[Folder, Folder]]:
        with (
            open_folder(self._paths.retain, self._host.roots) as source,
            open_folder(self._paths.backup, self._host.roots) as backup,
        ):
            yield source, backup


def _figures(manifest: Manifest, text: bytes) -> Facts:
    """What the leaf is told of a set."""
    digest = f"blake3:{blake3(text).hexdigest()}"
    return {"size": manifest.size, "consistency": manifest.consistency, "manifest_digest": digest}


def backup_size(folder: Folder, name: str) -> int:
    """A file's length, 0 where it is gone."""
    found = folder.status(name)
    return found.st_size if found else 0
