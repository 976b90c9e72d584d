"""Copies images that lie frozen below a machine's overlays to their set's place. Called by merge.

On the filesystem of the retain directory they go there (cloned, where it can), and retain renames them; to another they
go straight to the backup directory, so that data is written once. A file bears its name there only once it is complete.
What the machine writes meanwhile fills its overlay, which is watched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from nodeagent.host.cloning import clone_file
from nodeagent.host.copying import Content, Pace, copy_file, digest_file
from nodeagent.host.folders import Access, Folder, make_folder, open_folder, remove_empty
from nodeagent.operations.leftovers import is_lost
from nodeagent.operations.making import read_making, write_making
from nodeagent.operations.overlay_growth import OverlayGrowth
from nodeagent.operations.overlays import overlay_of
from nodeagent.order import Order, OrderDisk
from nodeagent.steps import NO_FACTS, Facts, Host, access
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused

_PRIVATE = Access(mode=0o600)
_MIB = 1 << 20


class FrozenCopies:
    """The copies of one merge. Each verb may be repeated."""

    def __init__(self, order: Order, host: Host) -> None:
        self._order = order
        self._host = host
        self._growth = OverlayGrowth(order, host)

    def copy(self, disk: OrderDisk, _facts: Facts) -> Facts:
        """One image to its place, and its digest noted."""
        name = self._kept(disk)
        with self._place() as place, open_folder(PurePosixPath(disk.path).parent, self._host.roots) as images:
            if not place.exists(name):
                self._refuse_unless_frozen(disk)
                self._make(disk, (images, PurePosixPath(disk.path).name), (place, name))
            elif not self._order.route.clones and not self._is_noted(disk):
                with self._growth.watched() as pace:
                    self._note(disk, digest_file(place, name, self._host.progress, pace=pace))
        return NO_FACTS

    def digest(self, disk: OrderDisk, _facts: Facts) -> Facts:
        """Note a clone's digest; only once the machine has its own images again, so that no overlay grows meanwhile."""
        if not self._is_noted(disk):
            pace = Pace(self._order.bandwidth_copy * _MIB, self._host.stop)
            with self._place() as place:
                content = digest_file(place, self._kept(disk), self._host.progress, pace=pace)
            self._note(disk, content)
        return NO_FACTS

    def remove(self, disk: OrderDisk, _facts: Facts) -> Facts:
        """Remove a copy, unless all are there: the set can be finished then, and images may be written to again."""
        if is_lost(self._order, self._host):
            with self._place() as place:
                place.remove_made(self._kept(disk))
                place.sync()
            if self._order.route.once:
                paths = self._order.paths
                remove_empty(paths.backup, paths.backup_root, self._host.roots)
        return NO_FACTS

    def _make(self, disk: OrderDisk, source: tuple[Folder, str], target: tuple[Folder, str]) -> None:
        if self._order.route.clones:
            clone_file(source, target, _PRIVATE)
            self._drop_unless_frozen(disk, target)
            return
        with self._growth.watched((source, target)) as pace:
            content = copy_file(source, target, _PRIVATE, self._host.progress, pace)
        self._drop_unless_frozen(disk, target)
        self._note(disk, content)

    def _drop_unless_frozen(self, disk: OrderDisk, target: tuple[Folder, str]) -> None:
        """Somebody may have written the overlay back by hand meanwhile: then the copy is of no instant."""
        try:
            self._refuse_unless_frozen(disk)
        except Refused:
            folder, name = target
            folder.remove(name)
            raise

    def _refuse_unless_frozen(self, disk: OrderDisk) -> None:
        view = self._host.hypervisor.look(self._order.machine)
        sources = {known.target: known.source for known in view.description.disks} if view else {}
        if sources.get(disk.target) != str(overlay_of(disk, self._order.timestamp)):
            raise Refused(
                ReturnValue.CANNOT_MERGE,
                f"{self._order.machine}: {disk.path} is written to again, its instant is gone; the set cannot be made, "
                "back the machine up again",
            )

    # the place

    def _kept(self, disk: OrderDisk) -> str:
        return self._order.paths.kept_name(disk.kept) if self._order.route.once else disk.kept

    @contextmanager
    def _place(self) -> Iterator[Folder]:
        paths = self._order.paths
        if self._order.route.once:
            with make_folder(paths.backup, self._host.roots, access(self._order.directories)) as backup:
                yield backup
        else:
            with open_folder(paths.retain, self._host.roots) as retain:
                yield retain

    def _is_noted(self, disk: OrderDisk) -> bool:
        with open_folder(self._order.paths.retain, self._host.roots) as retain:
            return read_making(retain).knows(disk.kept)

    def _note(self, disk: OrderDisk, content: Content) -> None:
        with open_folder(self._order.paths.retain, self._host.roots) as retain:
            write_making(retain, read_making(retain).with_content(disk.kept, content))
