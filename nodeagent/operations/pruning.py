"""Removes iterations of a machine beyond the number to keep. Called by retain once the newer set is durable.

Only complete sets count and only complete sets go; a set stops being one before its files go, so that nobody takes
half a set for a backup.
"""

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePath

from nodeagent.host.folders import Access, Folder, open_folder
from vmkeep.contract.paths import MANIFEST_NAME
from vmkeep.contract.timestamps import is_timestamp

_REMOVING = ".removing"


def prune(machine_directory: PurePath, roots: Sequence[str], keep: int, protected: Collection[str]) -> list[str]:
    """Remove the oldest complete sets beyond `keep`; returns the timestamps removed. `protected` ones stay and count.

    Nothing is removed while a set's time lies after the newest protected one: then a clock is wrong, and age means
    nothing.
    """
    with open_folder(machine_directory, roots) as machine:
        _finish_removals(machine)
        complete = [name for name in machine.names() if is_timestamp(name) and _is_complete(machine, name)]
        newest_of_ours = max(protected)
        if complete and complete[-1] > newest_of_ours:
            return []
        surplus = complete[: max(0, len(complete) - keep)]
        removed = [name for name in surplus if name not in protected]
        for name in removed:
            _remove_set(machine, name)
    return removed


def _is_complete(machine: Folder, timestamp: str) -> bool:
    with _inside(machine, timestamp) as folder:
        return folder.exists(f"{MANIFEST_NAME}.{timestamp}")


def _finish_removals(machine: Folder) -> None:
    """Go on where a removal was interrupted."""
    for name in machine.names():
        if is_timestamp(name):
            with _inside(machine, name) as folder:
                interrupted = folder.exists(_REMOVING)
            if interrupted:
                _remove_files(machine, name)


def _remove_set(machine: Folder, timestamp: str) -> None:
    """Take its manifest's name away first: from then on it is no set, and known to be on its way out."""
    with _inside(machine, timestamp) as folder:
        folder.rename_over(f"{MANIFEST_NAME}.{timestamp}", folder, _REMOVING)
        folder.sync()
    _remove_files(machine, timestamp)


def _remove_files(machine: Folder, timestamp: str) -> None:
    with _inside(machine, timestamp) as folder:
        for name in folder.names():
            if name != _REMOVING:
                folder.remove(name)
        folder.remove(_REMOVING)
    os.rmdir(timestamp, dir_fd=machine.descriptor)
    machine.sync()


@contextlib.contextmanager
def _inside(machine: Folder, name: str) -> Iterator[Folder]:
    with open_folder(machine.path / name, [str(machine.path)]) as folder:
        yield folder


def remove_iteration(machine_directory: PurePath, roots: Sequence[str], timestamp: str) -> None:
    """Remove one iteration, complete or not; fine where it is gone. It stops being a set before its first file goes."""
    try:
        with open_folder(machine_directory, roots) as machine:
            if not machine.exists(timestamp):
                return
            if _is_complete(machine, timestamp):
                _remove_set(machine, timestamp)
                return
            with _inside(machine, timestamp) as folder:
                folder.write(_REMOVING, b"", Access(mode=0o600))
            _remove_files(machine, timestamp)
    except FileNotFoundError:
        return
