"""Whether some QEMU has an image open of a machine that does not run here: asked before an image changes places.

A name can be given to another file under a running guest, which writes on to the file it has open, and nobody reads
that again. libvirt forgets with its next start that a machine moved away, and sstNode is a person's word: what tells is
the locks on the file itself. Called by the surveys.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import TypeAlias

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Folder, open_folder
from nodeagent.host.hypervisor import View
from nodeagent.operations.overlays import overlays_beside
from nodeagent.steps import Host
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused

_CLOSING_SECONDS, _POLL_SECONDS = 2.0, 0.1  # a QEMU that ends may take a moment to let go
_Look: TypeAlias = Callable[[Folder, str], bool]


def refuse_if_open_elsewhere(machine: str, host: Host, view: View | None, images: Iterable[str]) -> None:
    """Refused before a restore replaces images that anybody has open: who reads one would go on with what goes away."""
    if view is not None and view.is_active:
        return
    for image in images:
        _refuse_if_in_use(machine, host, PurePosixPath(image), host.images.is_open)


def refuse_if_written_elsewhere(machine: str, host: Host, view: View | None, images: Iterable[str]) -> None:
    """Refused before a snapshot moves images that somebody writes to, or to an overlay of theirs.

    Who only reads is not in its way, and may do so every night: clones of a template, a backup of other make. What they
    read stays what it is under any name.
    """
    if view is not None and view.is_active:
        return
    for image in map(PurePosixPath, images):
        for path in (image, *_overlays(image, host)):
            _refuse_if_in_use(machine, host, path, host.images.is_written)


def _overlays(image: PurePosixPath, host: Host) -> list[PurePosixPath]:
    """Where a machine writes whose disks are frozen: it only reads its image then."""
    try:
        return overlays_beside(image, host.roots)
    except (HostFailure, OSError):
        return []  # told by who reads the image


def _refuse_if_in_use(machine: str, host: Host, image: PurePosixPath, is_in_use: _Look) -> None:
    if not _comes_free(image, host, is_in_use):
        raise Refused(
            ReturnValue.WRONG_STATE_INFORMATION,
            f"{machine} does not run on {host.node}, and its image {image} is open in a QEMU or one of its tools; "
            "nothing was touched; if it runs on another node, set sstNode to that",
        )


def _comes_free(image: PurePosixPath, host: Host, is_in_use: _Look) -> bool:
    deadline = time.monotonic() + _CLOSING_SECONDS
    while _looks(image, host, is_in_use):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)  # locks tell nobody
    return True


def _looks(image: PurePosixPath, host: Host, is_in_use: _Look) -> bool:
    try:
        with open_folder(image.parent, host.roots) as folder:
            return is_in_use(folder, image.name)
    except (HostFailure, OSError):
        return False  # no image yet, or a storage without locks; what is wrong with it is told by who reads it
