"""Clears what a restore left in the retain directory once its leaf has ended or was backed out. Called by the cycle.

No plan and no journal: removing may simply be done again, and the note that leads here goes last.
"""

from nodeagent.host.folders import Folder, open_folder, remove_empty
from nodeagent.operations.aside import BEFORE, RESTORED, before_directory, is_restored
from nodeagent.order import Order
from nodeagent.steps import Host


def clean_up(order: Order, host: Host, *, keep_old: bool) -> bool:
    """Remove what the restore brought and kept, but what it replaced if `keep_old`; True where nothing is left.

    What a restore that failed could not put back is never removed: it may be all there is of the machine.
    """
    try:
        with open_folder(order.paths.retain, host.roots) as retain:
            _remove_files(retain)
        with open_folder(before_directory(order), host.roots) as before:
            if keep_old or (before.names() and not is_restored(before)):
                return False
            _remove_files(before, last=RESTORED)
    except FileNotFoundError:
        pass  # nothing was replaced, or the last call came this far
    remove_empty(before_directory(order), order.paths.retain_root, host.roots)
    host.unretained.forget(order)
    return True


def _remove_files(folder: Folder, last: str = "") -> None:
    for name in folder.names():
        if name not in (BEFORE, last):
            folder.remove(name)
    folder.sync()
    if last:
        folder.remove(last)
