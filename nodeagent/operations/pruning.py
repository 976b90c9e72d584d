"""Removes iterations of a machine beyond the number to keep. Called by retain once the newer set is durable.

Only complete sets count and only complete sets go; a set stops being one before its files go, so that nobody takes
half a set for a backup.
"""

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, Folder, open_folder
from vmkeep.contract.paths import MANIFEST_NAME
from vmkeep.contract.timestamps import is_timestamp

_REMOVING = ".removing"


@dataclass(frozen=True)
class Pruned:
    """Timestamps removed, and a sentence for each that could not be."""

    removed: tuple[str, ...]
    left: tuple[str, ...]


def prune(machine_directory: PurePath, roots: Sequence[str], keep: int, protected: Collection[str]) -> Pruned:
    """Remove the oldest complete sets beyond `keep`, each by itself. `protected` ones stay and count.

    Nothing is removed while a set's time lies after the newest protected one: then a clock is wrong, and age means
    nothing. What an interrupted removal left goes first.
    """
    with open_folder(machine_directory, roots) as machine:
        iterations = [name for name in machine.names() if is_timestamp(name) and machine.has_folder(name)]
        interrupted = [name for name in iterations if _is_interrupted(machine, name)]
        left = _remove_each(machine, interrupted, _remove_files)
        complete = [name for name in iterations if name not in interrupted and _is_complete(machine, name)]
        surplus = complete[: max(0, len(complete) - keep)]
        if complete and complete[-1] > max(protected):
            surplus = []
        wanted = [name for name in surplus if name not in protected]
        left |= _remove_each(machine, wanted, _remove_set)
    return Pruned(tuple(name for name in wanted if name not in left), tuple(left.values()))


def _remove_each(machine: Folder, names: Sequence[str], remove: Callable[[Folder, str], None]) -> dict[str, str]:
    """Why not, for those that could not be removed; what is foreign in one keeps none of the others."""
    left = {}
    for name in names:
        try:
            remove(machine, name)
        except (HostFailure, OSError) as why:
            left[name] = f"{machine.path / name}: {why}"
    return left


def _is_interrupted(machine: Folder, timestamp: str) -> bool:
    """Whether its removal began; an empty one lacks only the last touch."""
    with machine.inside(timestamp) as folder:
        names = folder.names()
    return not names or _REMOVING in names


def _is_complete(machine: Folder, timestamp: str) -> bool:
    return _has(machine, timestamp, f"{MANIFEST_NAME}.{timestamp}")


def _has(machine: Folder, iteration: str, name: str) -> bool:
    with machine.inside(iteration) as folder:
        return folder.exists(name)


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
