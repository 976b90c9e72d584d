"""Keeps what a restore replaces, and puts it back: definition, images, firmware. Called by the restore's plan.

Everything lies in `before` below the restore's retain directory until the leaf has ended. An image gets a second name
there before the new one is renamed over its first, and so has the new one: at no moment is there no image at a path,
and which one it is can always be told. What is taken back twice is taken back once.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import PurePosixPath

from nodeagent.host.copying import AT_ONCE, copy_file
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, Folder, make_folder, open_folder
from nodeagent.order import Firmware, Order, OrderDisk
from nodeagent.steps import LEFT, NO_FACTS, Facts, Host, access

BEFORE = "before"
RESTORED = "restored"
_TAKEN_BACK = "taken-back"
_PRIVATE = Access(mode=0o600)
_PASSABLE = Access(mode=0o711)  # QEMU and swtpm are other users; libvirt makes these directories so too


def before_directory(order: Order) -> PurePosixPath:
    """Where what a restore replaces is kept."""
    return order.paths.retain / BEFORE


def old_state(order: Order) -> PurePosixPath:
    """The memory of the machine as it ran before."""
    return before_directory(order) / order.paths.state


def note_restored(order: Order, host: Host) -> None:
    """Remember, beside what is kept, that it is needed no more once the leaf has ended; durable when it returns."""
    with open_folder(before_directory(order), host.roots) as before:
        before.write(RESTORED, b"", _PRIVATE)


def is_restored(before: Folder) -> bool:
    """Whether what is kept here is of a restore that came out well: else it may be all there is of the machine."""
    return before.exists(RESTORED)


class Aside:
    """What one restore replaces. Each verb may be repeated."""

    def __init__(self, order: Order, host: Host) -> None:
        self._order = order
        self._host = host

    # which way it goes; the journal's lines may be lost on a full disk

    def note_way_back(self) -> None:
        """Remember, beside the place, that what it keeps is being put back: the mark outlives the place."""
        with contextlib.suppress(OSError), self._retain() as retain:
            if not retain.exists(_TAKEN_BACK):
                retain.write(_TAKEN_BACK, b"", _PRIVATE)

    def require_way_forth(self, *, is_made: bool = True) -> None:
        """Never forth again with what was put back, wholly or in part. `is_made`: the place is to be there."""
        with self._retain() as retain:
            is_taken_back = retain.exists(_TAKEN_BACK)
        if is_taken_back or (is_made and not self._is_there()):
            raise HostFailure("the agent ended while it was taking the restore back")

    # the definition

    def keep_definition(self, _facts: Facts) -> Facts:
        """Make the place, and keep the machine's definition in it."""
        with make_folder(before_directory(self._order), self._host.roots, Access(mode=0o700)) as before:
            if self._order.set.old_xml:
                before.write(self._order.paths.xml, self._order.set.old_xml.encode(), _PRIVATE)
            before.sync()
        return NO_FACTS

    def remove(self, _facts: Facts) -> Facts:
        """Remove the place; what it kept is where it was."""
        try:
            with open_folder(before_directory(self._order), self._host.roots) as before:
                before.remove_made(self._order.paths.xml)
            with self._retain() as retain:
                os.rmdir(BEFORE, dir_fd=retain.descriptor)
                retain.sync()
        except FileNotFoundError:
            pass
        with contextlib.suppress(FileNotFoundError), self._retain() as retain:
            retain.remove_made(_TAKEN_BACK)
            retain.sync()
        return NO_FACTS

    def define(self, _facts: Facts) -> Facts:
        """Define the machine as it is to become."""
        self._host.hypervisor.define(self._order.set.xml)
        return NO_FACTS

    def define_back(self, _facts: Facts) -> Facts:
        """Define it as it was; where libvirt knew none, it knows none again."""
        if self._order.set.old_xml:
            self._host.hypervisor.define(self._order.set.old_xml)
        elif not self._is_running():
            self._host.hypervisor.undefine(self._order.machine)
        return NO_FACTS

    def _is_running(self) -> bool:
        view = self._host.hypervisor.look(self._order.machine)
        return view is not None and view.is_active

    # images

    def place(self, _facts: Facts) -> Facts:
        """Put every image in its place, the one that lies there kept aside."""
        for disk in self._order.disks:
            with self._folders(disk) as (images, retain, before):
                if not self._is_placed(images, before, disk):
                    self._place_one(disk, (images, retain, before))
        return NO_FACTS

    def _place_one(self, disk: OrderDisk, folders: tuple[Folder, Folder, Folder]) -> None:
        images, retain, before = folders
        name = PurePosixPath(disk.path).name
        retain.link_to(disk.kept, before, _new(disk))
        if images.exists(name):
            images.link_to(name, before, disk.target)
        before.sync()
        self._give_access(retain, images, disk)
        retain.rename_over(disk.kept, images, name)
        images.sync()
        retain.sync()

    @staticmethod
    def _is_placed(images: Folder, before: Folder, disk: OrderDisk) -> bool:
        return images.is_same(PurePosixPath(disk.path).name, before, _new(disk))

    def _give_access(self, retain: Folder, images: Folder, disk: OrderDisk) -> None:
        """As the plan says, else as the image it takes the place of."""
        wanted, old = access(self._order.files), images.status(PurePosixPath(disk.path).name)
        given = Access(
            wanted.uid if wanted.uid is not None or old is None else old.st_uid,
            wanted.gid if wanted.gid is not None or old is None else old.st_gid,
            wanted.mode if wanted.mode is not None or old is None else old.st_mode & 0o7777,
        )
        retain.set_access(disk.kept, given)

    def place_back(self, facts: Facts) -> Facts:
        """Give every path its old image again. A new one a guest may have written to is the backup no more: it goes."""
        if not self._is_there():
            return self._what_is_lost()
        if self.is_in_place() and self._is_running():
            raise HostFailure(f"{self._order.machine} runs on the images of its backup; switch it off")
        has_run = any(f"{step}_began" in facts for step in ("load", "go", "start"))
        for disk in reversed(self._order.disks):
            with self._folders(disk) as (images, retain, before):
                if before.exists(_new(disk)):
                    self._place_one_back(disk, (images, retain, before))
                    if has_run:
                        retain.remove(disk.kept)
                    retain.sync()
                    before.remove(_new(disk))
                    before.sync()
        return NO_FACTS

    def _what_is_lost(self) -> Facts:
        """Nothing where it was taken back before, which was not noted; else somebody removed what was kept."""
        lost = [disk.path for disk in self._order.disks if disk.inode and self._inode_at(disk.path) == disk.inode]
        if not lost:
            return NO_FACTS
        directory = before_directory(self._order)
        told = f"{directory}, where the machine's own images lay, was removed by somebody: the backup's images stay at"
        return {LEFT: f"{told} {', '.join(lost)}"}

    def _inode_at(self, path: str) -> int:
        try:
            with open_folder(PurePosixPath(path).parent, self._host.roots) as images:
                found = images.status(PurePosixPath(path).name)
        except FileNotFoundError:
            return 0
        return found.st_ino if found else 0

    def _place_one_back(self, disk: OrderDisk, folders: tuple[Folder, Folder, Folder]) -> None:
        images, retain, before = folders
        name = PurePosixPath(disk.path).name
        if not retain.exists(disk.kept):
            before.link_to(_new(disk), retain, disk.kept)
        if self._is_placed(images, before, disk):
            if before.exists(disk.target):
                before.rename_over(disk.target, images, name)
            else:
                images.remove(name)
            images.sync()
        if images.is_same(name, before, disk.target):
            before.remove(disk.target)
        if before.exists(disk.target):
            raise HostFailure(
                f"somebody else put another image at {disk.path}; the machine's own is {before.path / disk.target}"
            )

    def is_in_place(self) -> bool:
        """Whether any of the new images is."""
        return any(self._is_one_in_place(disk) for disk in self._order.disks)

    def are_in_place(self) -> bool:
        """Whether all of the new images are."""
        return all(self._is_one_in_place(disk) for disk in self._order.disks)

    def _is_one_in_place(self, disk: OrderDisk) -> bool:
        try:
            with (
                open_folder(PurePosixPath(disk.path).parent, self._host.roots) as images,
                open_folder(before_directory(self._order), self._host.roots) as before,
            ):
                return self._is_placed(images, before, disk)
        except FileNotFoundError:
            return False

    def _is_there(self) -> bool:
        """Whether anything is kept aside, or was and is not back yet."""
        try:
            with open_folder(before_directory(self._order), self._host.roots):
                return True
        except FileNotFoundError:
            return False

    # firmware

    def keep_firmware(self, _facts: Facts) -> Facts:
        """Copy the firmware's files as the machine left them; it is off by now. What is kept is not copied again."""
        with open_folder(before_directory(self._order), self._host.roots) as before:
            for item in self._order.firmware:
                if before.exists(item.role) or before.exists(_none(item)):
                    continue
                with self._place_of(item) as folder:
                    if not _copy_as_it_is((folder, PurePosixPath(item.path).name), (before, item.role)):
                        before.write(_none(item), b"", _PRIVATE)
        return NO_FACTS

    def put_firmware(self, _facts: Facts) -> Facts:
        """Put the set's files in place."""
        with self._retain() as retain:
            for item in self._order.firmware:
                name = PurePosixPath(item.path).name
                with self._place_of(item) as folder:
                    given = _access_of(folder, name)
                    folder.remove(name)
                    copy_file((retain, item.kept), (folder, name), given, pace=AT_ONCE)
        return NO_FACTS

    def put_firmware_back(self, _facts: Facts) -> Facts:
        """Put the machine's own files back; where it had none, there is none again."""
        if not self._is_there():
            return NO_FACTS
        with open_folder(before_directory(self._order), self._host.roots) as before:
            for item in self._order.firmware:
                if before.exists(item.role) or before.exists(_none(item)):
                    name = PurePosixPath(item.path).name
                    with self._place_of(item) as folder:
                        folder.remove(f"{name}.partial")  # of a copy that was killed
                        folder.remove(name)
                        _copy_as_it_is((before, item.role), (folder, name))
        return NO_FACTS

    def drop_firmware(self, _facts: Facts) -> Facts:
        """Remove the copies."""
        if not self._is_there():
            return NO_FACTS
        with open_folder(before_directory(self._order), self._host.roots) as before:
            for item in self._order.firmware:
                for name in (item.role, _none(item)):
                    before.remove_made(name)
        return NO_FACTS

    @contextlib.contextmanager
    def _place_of(self, item: Firmware) -> Iterator[Folder]:
        with make_folder(PurePosixPath(item.path).parent, self._host.roots, _PASSABLE) as folder:
            yield folder

    @contextlib.contextmanager
    def _retain(self) -> Iterator[Folder]:
        with open_folder(self._order.paths.retain, self._host.roots) as retain:
            yield retain

    @contextlib.contextmanager
    def _folders(self, disk: OrderDisk) -> Iterator[tuple[Folder, Folder, Folder]]:
        directories = access(self._order.directories)
        with (
            make_folder(PurePosixPath(disk.path).parent, self._host.roots, directories) as images,
            self._retain() as retain,
            open_folder(before_directory(self._order), self._host.roots) as before,
        ):
            yield images, retain, before


def _access_of(folder: Folder, name: str) -> Access:
    """As the file that lies there, else as the directory it lies in."""
    found = folder.status(name)
    if found is not None:
        return Access(found.st_uid, found.st_gid, found.st_mode & 0o7777)
    parent = os.fstat(folder.descriptor)
    return Access(parent.st_uid, parent.st_gid, 0o600)


def _copy_as_it_is(source: tuple[Folder, str], target: tuple[Folder, str]) -> bool:
    """Copy a file with owner and mode; False where there is none."""
    folder, name = source
    if not folder.exists(name):
        return False
    copy_file(source, target, _access_of(folder, name), pace=AT_ONCE)
    return True


def _new(disk: OrderDisk) -> str:
    """A second name of the new image: tells whether it is what lies at the path."""
    return f"{disk.target}.new"


def _none(item: Firmware) -> str:
    """Marks that the machine had no such file: a copy that is missing could also have been cleared away."""
    return f"{item.role}.none"
