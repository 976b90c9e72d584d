"""A step of an operation: what it does, how to ask the host whether it is done, how to take it back.

Operations are tuples of steps, made in pure functions; the runner carries them out over the journal.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TypeAlias

from nodeagent.host.copying import Progress, no_progress
from nodeagent.host.folders import Access, open_folder
from nodeagent.host.hypervisor import Hypervisor
from nodeagent.host.images import Images
from nodeagent.host.qcow2 import Header
from nodeagent.journal import Fact
from nodeagent.moves import Moves
from nodeagent.order import Ownership
from nodeagent.turns import Turns
from nodeagent.unretained import Unretained
from vmkeep.contract.codes import ReturnValue

Facts: TypeAlias = Mapping[str, Fact]
NO_FACTS: Facts = {}
LEFT = "left"  # of an undo: what is not as it was although nothing refused; the outcome tells it


def _not_known(_facts: Facts) -> Facts | None:
    """For steps that may simply be done again."""
    return None


def _nothing(_facts: Facts) -> Facts:
    """For steps that leave nothing to take back."""
    return NO_FACTS


@dataclass(frozen=True)
class Step:
    """One step. `apply` may be repeated after a crash; it returns what later steps and the report need to know.

    `is_done` is asked when the journal says that the step began but not that it ended: facts where it is done, None
    where it has to be applied (again). `undo` is called, last step first, for whatever began. `code` is reported when
    the host refuses. A step with `guest_is_down` is tried for as long as it takes: a machine waits for it. Where a step
    that `guards_machine` cannot be taken back, nothing before it is: it may hold the only copy.
    """

    name: str
    doing: str
    code: ReturnValue
    apply: Callable[[Facts], Facts]
    is_done: Callable[[Facts], Facts | None] = _not_known
    undo: Callable[[Facts], Facts] = _nothing
    guest_is_down: bool = False
    guards_machine: bool = False

    def undone_by(self, undo: Callable[[Facts], Facts]) -> "Step":
        """The same step with a way back."""
        return replace(self, undo=undo)

    def guarding_machine(self) -> "Step":
        """The same step, one that the machine's data or memory hangs on."""
        return replace(self, guards_machine=True)

    def while_guest_is_down(self, is_down: bool) -> "Step":
        """The same step, with a machine waiting for it or not."""
        return replace(self, guest_is_down=is_down)


@dataclass(frozen=True)
class Host:
    """The node's doors and rules, handed to every operation. `roots` are the directories that paths may lie below."""

    node: str
    hypervisor: Hypervisor
    images: Images
    roots: Sequence[str]
    versions: Mapping[str, str]
    unretained: Unretained
    stop: threading.Event = field(default_factory=threading.Event)
    wall_clock: Callable[[], float] = time.time
    progress: Progress = field(default=no_progress)
    moves: Moves = field(default_factory=Moves)
    turns: Turns = field(default_factory=Turns)

    def header(self, path: PurePath) -> Header:
        """What the image at a path says of itself; FileNotFoundError where there is none."""
        with open_folder(path.parent, self.roots) as folder:
            return self.images.header(folder, path.name)


def access(ownership: Ownership) -> Access:
    """Owner, group and mode in the host's terms."""
    return Access(ownership.uid, ownership.gid, ownership.mode)
