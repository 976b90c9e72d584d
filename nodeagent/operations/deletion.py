"""Delete: remove the files of one backup, in the backup directory and what a failed one left in retain.

    remove → clear

There is no way back, so the survey refuses what should not go: a set that a restore uses, the last good one, an image
that a live one still lies over.
"""

from functools import partial
from pathlib import PurePosixPath

from nodeagent.host.folders import open_folder, remove_empty
from nodeagent.operations.aside import BEFORE
from nodeagent.operations.removing import remove_iteration
from nodeagent.order import Order
from nodeagent.steps import NO_FACTS, Facts, Host, Step
from vmkeep.contract.codes import ReturnValue


def delete(order: Order, host: Host) -> tuple[Step, ...]:
    """The steps of a deletion."""
    return (
        Step("remove", "remove the files of the backup", ReturnValue.CANNOT_REMOVE_FILE, partial(_remove, order, host)),
        Step("clear", "clear the retain directory", ReturnValue.RETAIN_NOT_EMPTY, partial(_clear, order, host)),
    )


def _remove(order: Order, host: Host, _facts: Facts) -> Facts:
    if not order.set.set_directory:
        return NO_FACTS  # it came to no set
    directory = PurePosixPath(order.set.set_directory)
    remove_iteration(directory.parent, host.roots, directory.name)
    return NO_FACTS


def _clear(order: Order, host: Host, _facts: Facts) -> Facts:
    if not order.set.set_directory:
        return NO_FACTS
    try:
        with open_folder(order.paths.retain, host.roots) as retain:
            for name in retain.names():
                if name != BEFORE:  # what a restore replaced goes by rules of its own
                    retain.remove(name)
            retain.sync()
    except FileNotFoundError:
        return NO_FACTS
    remove_empty(order.paths.retain, order.paths.retain_root, host.roots)
    return NO_FACTS
