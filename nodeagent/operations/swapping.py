"""Puts empty images in the place of a machine's disks, and takes that back. Called by the snapshot's plan.

The image gets a second name in retain, then the prepared overlay is renamed over its first: at no moment is there no
image at the path, and nothing in retain is ever written over.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Folder, open_folder
from nodeagent.operations import saved_memory
from nodeagent.operations.overlays import overlay_name
from nodeagent.operations.streaming import make_whole
from nodeagent.order import Order, OrderDisk
from nodeagent.steps import NO_FACTS, Facts, Host, access
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import Power


class Swapping:
    """The overlays of one snapshot. Each verb may be repeated."""

    def __init__(self, order: Order, host: Host) -> None:
        self._order = order
        self._host = host
        self._paths = order.paths

    def create(self, _facts: Facts) -> Facts:
        """Make the overlays beside their images, under another name; their backing files do not exist yet."""
        for disk in self._order.disks:
            with self._folders(disk) as (images, _):
                images.remove(self._new_name(disk))
                path = images.path / self._new_name(disk)
                self._host.images.create_overlay(path, self._paths.retain / disk.kept, disk.size)
                self._give_access(images, disk)
                images.sync()
        return NO_FACTS

    def _give_access(self, images: Folder, disk: OrderDisk) -> None:
        """As the plan says, else as the image it takes the place of."""
        wanted, old = access(self._order.files), images.status(PurePosixPath(disk.path).name)
        assert old is not None, disk.path
        with images.opened(self._new_name(disk)) as descriptor:
            os.fchown(
                descriptor,
                old.st_uid if wanted.uid is None else wanted.uid,
                old.st_gid if wanted.gid is None else wanted.gid,
            )
            os.fchmod(descriptor, old.st_mode & 0o7777 if wanted.mode is None else wanted.mode)
            os.fsync(descriptor)

    def remove_created(self, _facts: Facts) -> Facts:
        """Remove overlays that were not put in place."""
        for disk in self._order.disks:
            with open_folder(PurePosixPath(disk.path).parent, self._host.roots) as images:
                images.remove(self._new_name(disk))
                images.sync()
        return NO_FACTS

    def swap(self, facts: Facts) -> Facts:
        """Put every overlay in its place."""
        self._refuse_if_started_by_another()
        saved_memory.refuse_if_past(self._host, self._order, facts)
        for disk in self._order.disks:
            with self._folders(disk) as (images, retain):
                if not self._is_swapped(images, disk):
                    self._swap_one(images, retain, disk)
        self._refuse_if_started_meanwhile()
        return NO_FACTS if self._order.power is not Power.OFF else {"instant": self._host.wall_clock()}

    def _swap_one(self, images: Folder, retain: Folder, disk: OrderDisk) -> None:
        name = PurePosixPath(disk.path).name
        images.link_to(name, retain, disk.kept)
        retain.sync()
        images.rename_over(self._new_name(disk), images, name)
        images.sync()

    def _refuse_if_started_by_another(self) -> None:
        """A machine that was saved is off; one that runs now was started on its old images, and keeps them."""
        view = self._host.hypervisor.look(self._order.machine)
        if self._order.power is not Power.OFF and view is not None and view.is_active:
            raise self._order.started_by_another

    def _refuse_if_started_meanwhile(self) -> None:
        """A machine that was off and is started in this very moment may have opened the image that just moved."""
        if self._order.power is not Power.OFF:
            return
        view = self._host.hypervisor.look(self._order.machine)
        if view is None or not view.is_active:
            return
        chains = view.description.chains
        if any(len(chains.get(disk.target, ())) < 2 for disk in self._order.disks):
            raise Refused(
                ReturnValue.WRONG_STATE_INFORMATION,
                f"{self._order.machine} was started while its images were being moved; "
                "the next run saves it as it runs",
            )

    def swap_back(self, _facts: Facts) -> Facts:
        """Give every image its name back; one whose overlay was written to is made whole instead.

        The latter is told as `ran_on`: the saved memory is of the past then, and must never be restored.
        """
        ran_on = False
        for disk in self._order.disks:
            with self._folders(disk) as (images, retain):
                ran_on = self._swap_one_back(images, retain, disk) or ran_on
        return {"ran_on": True} if ran_on else NO_FACTS

    def _swap_one_back(self, images: Folder, retain: Folder, disk: OrderDisk) -> bool:
        name, ran_on = PurePosixPath(disk.path).name, False
        if self._is_swapped(images, disk):
            if self._host.images.header(images, name).is_empty and not self._has_opened_overlay(disk):
                retain.rename_over(disk.kept, images, name)
                images.sync()
            else:
                make_whole(self._host, self._order, disk)
                ran_on = True
        elif retain.exists(disk.kept) and not images.is_same(name, retain, disk.kept):
            make_whole(self._host, self._order, disk)  # it was, as far as its header tells
            ran_on = True
        if retain.exists(disk.kept):
            retain.remove(disk.kept)
        retain.sync()
        return ran_on

    def _has_opened_overlay(self, disk: OrderDisk) -> bool:
        """Whether QEMU runs over the overlay now; one started in the moment of the swap may hold the old image."""
        view = self._host.hypervisor.look(self._order.machine)
        if view is None or not view.is_active:
            return False
        return len(view.description.chains.get(disk.target, ())) > 1

    def _is_swapped(self, images: Folder, disk: OrderDisk) -> bool:
        header = self._host.images.header(images, PurePosixPath(disk.path).name)
        if header.backing_file is None:
            return False
        if header.backing_file != str(self._paths.retain / disk.kept):
            raise HostFailure(
                f"{disk.path} has become an overlay of {header.backing_file}; somebody else is at work on it"
            )
        return True

    def _new_name(self, disk: OrderDisk) -> str:
        return overlay_name(PurePosixPath(disk.path).name, self._order.timestamp)

    @contextmanager
    def _folders(self, disk: OrderDisk) -> Iterator[tuple[Folder, Folder]]:
        with (
            open_folder(PurePosixPath(disk.path).parent, self._host.roots) as images,
            open_folder(self._paths.retain, self._host.roots) as retain,
        ):
            yield images, retain
