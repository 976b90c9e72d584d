"""Removes the files of one backup. Called by deletion.

A set stops being one before its first file goes, so that nobody takes half a set for a backup. What a removal that was
interrupted left goes with the next.
"""

import os
from collections.abc import Sequence
from pathlib import PurePath

from nodeagent.host.folders import Access, Folder, open_folder
from vmkeep.contract.paths import MANIFEST_NAME

_REMOVING = ".removing"


def remove_iteration(machine_directory: PurePath, roots: Sequence[str], timestamp: str) -> None:
    """Remove one iteration, complete or not; fine where it is gone. It stops being a set before its first file goes."""
    try:
        with open_folder(machine_directory, roots) as machine:
            if not machine.exists(timestamp):
                return
            if _is_complete(machine, timestamp):
                _remove_set(machine, timestamp)
                return
            with machine.inside(timestamp) as folder:
                folder.write(_REMOVING, b"", Access(mode=0o600))
            _remove_files(machine, timestamp)
    except FileNotFoundError:
        return


def _is_complete(machine: Folder, timestamp: str) -> bool:
    with machine.inside(timestamp) as folder:
        return folder.exists(f"{MANIFEST_NAME}.{timestamp}")


def _remove_set(machine: Folder, timestamp: str) -> None:
    """Take its manifest's name away first: from then on it is no set, and known to be on its way out."""
    with machine.inside(timestamp) as folder:
        folder.rename_over(f"{MANIFEST_NAME}.{timestamp}", folder, _REMOVING)
        folder.sync()
    _remove_files(machine, timestamp)


def _remove_files(machine: Folder, timestamp: str) -> None:
    with machine.inside(timestamp) as folder:
        for name in folder.names():
            if name != _REMOVING:
                folder.remove(name)
        folder.sync()  # the mark goes last, also on the disk: what has none is looked at by nobody
        folder.remove(_REMOVING)
    os.rmdir(timestamp, dir_fd=machine.descriptor)
    machine.sync()
