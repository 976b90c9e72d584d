"""Watches overlays while frozen images are copied, and ends the copying before they end in a full disk.

Two limits: what the plan lets the machine write, and room. Whatever lies in overlays beside the images, of this machine
or of others, has to find room once more when it is written back: an image may lack just those blocks. Whoever fills the
filesystem, the copying ends before that. Called by the copies of a merge.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import PurePosixPath
from threading import Event

from nodeagent.host.copying import Pace, Stopped
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Folder, open_folder
from nodeagent.operations.overlays import is_overlay, overlay_of
from nodeagent.order import Order
from nodeagent.steps import Host

_LOOK_SECONDS = 0.5
_BLIND_SECONDS = 5.0  # so long a look may fail
_MIB = 1 << 20
_MOST_SPARE, _SPARE_SHARE = 256 * _MIB, 20  # what guests may write between two looks: 1/20 of a filesystem at most
Named = tuple[Folder, str]


class OverlayGrowth:
    """The overlays of one merge."""

    def __init__(self, order: Order, host: Host) -> None:
        self._order = order
        self._host = host

    @contextmanager
    def watched(self, copying: tuple[Named, Named] | None = None) -> Iterator[Pace]:
        """A pace that stops when the agent ends or an overlay has grown too much; HostFailure for the latter.

        `copying` are the image that is copied meanwhile and what it becomes.
        """
        stop = Event()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"overlay-{self._order.machine}") as thread:
            watching = thread.submit(self._watch, copying, stop)
            try:
                yield Pace(self._order.bandwidth_copy * _MIB, stop)
            except Stopped:
                if why := watching.result():
                    raise HostFailure(why) from None
                raise
            finally:
                stop.set()

    def _watch(self, copying: tuple[Named, Named] | None, stop: Event) -> str:
        """Why the copying had to end, "" where it was not for the overlays."""
        seen = time.monotonic()
        try:
            while True:
                try:
                    if why := self._excess() or self._shortage(copying):
                        return why
                    seen = time.monotonic()
                except (HostFailure, OSError) as why:
                    if time.monotonic() - seen > _BLIND_SECONDS:
                        return f"the overlays that it writes to cannot be looked at any more: {why}"
                if self._host.stop.is_set() or stop.wait(_LOOK_SECONDS):
                    return ""
        finally:
            stop.set()  # nothing is copied that nobody watches

    def _excess(self) -> str:
        limit = self._order.overlay_limit * _MIB
        if not limit or self._written() <= limit:
            return ""
        return f"the machine wrote more than {limit // _MIB} MiB while its disks were copied (vmkeepOverlayLimit)"

    def _written(self) -> int:
        return sum(self._allocated(overlay_of(disk, self._order.timestamp)) for disk in self._order.disks)

    def _allocated(self, overlay: PurePosixPath) -> int:
        with open_folder(overlay.parent, self._host.roots) as images:
            return images.allocated(overlay.name)

    def _shortage(self, copying: tuple[Named, Named] | None) -> str:
        """Where there is no room any more for what lies in overlays and for what is still to be copied."""
        rooms: dict[int, int] = {}
        for folder in sorted({PurePosixPath(disk.path).parent for disk in self._order.disks}):
            with open_folder(folder, self._host.roots) as images:
                free, device = images.free_bytes(), images.device
                room = rooms.get(device, free - _spare(images) - _still_to_copy(images, copying))
                rooms[device] = room - _in_overlays(images)
            if rooms[device] < 0:
                return (
                    f"{folder} has {free // _MIB} MiB free, {-rooms[device] // _MIB + 1} MiB less than it takes to go "
                    "on and to write overlays back; make room, or back up fewer of its machines at once"
                )
        return ""


def _in_overlays(images: Folder) -> int:
    """What overlays take up here, whosever they are."""
    return sum(images.allocated(name) for name in images.names() if is_overlay(name))


def _spare(images: Folder) -> int:
    return min(_MOST_SPARE, images.size_bytes() // _SPARE_SHARE)


def _still_to_copy(images: Folder, copying: tuple[Named, Named] | None) -> int:
    """What a copy will yet take on the images' filesystem."""
    if copying is None:
        return 0
    (source, name), (target, copy) = copying
    if target.device != images.device:
        return 0
    return max(0, source.allocated(name) - target.allocated_so_far(copy))
