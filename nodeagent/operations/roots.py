"""The two roots that a plan names, opened; where one cannot be, the machine's work is refused with a sentence.

Called by the survey and by the choice of a method.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Folder, open_folder
from nodeagent.steps import Host
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused


@dataclass(frozen=True)
class Root:
    """The attribute that names it, and what is returned where it is missing."""

    attribute: str
    missing: ReturnValue


RETAIN = Root("sstBackupRetainDirectory", ReturnValue.RETAIN_ROOT_MISSING)
BACKUP = Root("sstBackupRootDirectory", ReturnValue.BACKUP_ROOT_MISSING)


@contextlib.contextmanager
def open_root(machine: str, root: Root, path: str, host: Host) -> Iterator[Folder]:
    """The root; Refused where it is not there or cannot be opened."""
    with contextlib.ExitStack() as opened:
        try:
            folder = opened.enter_context(open_folder(PurePosixPath(path), host.roots))
        except FileNotFoundError:
            raise Refused(
                root.missing,
                f"{machine}: {root.attribute} names {path}, which is not there on {host.node}; make or mount it",
            ) from None
        except (HostFailure, OSError) as why:
            raise Refused(root.missing, f"{machine}: {root.attribute} names {path}: {why}") from None
        yield folder
