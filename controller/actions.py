"""What the controller can do with a leaf: a claim, a removal, and what a restore does to the machine's entry. Pure.

Decided by `decide`, carried out by the cycle; each says its one sentence.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

from vmkeep.contract.leaf import Leaf, Wishes
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute

# What a restore leaves on its leaf. What is kept of the old machine (vmkeepKeepOld) is for the admin to let go, and
# vmkeepRestoreFrom goes only with its leaf, which would pass for a backup of the wrong machine without it.
RESTORES_OWN = (
    *(Attribute.CONFLICTS, Attribute.ENTRY, Attribute.ENTRY_BEFORE),
    *(Attribute.RESTORE_DISK, Attribute.RESTORE_ISOLATED, Attribute.RESTORE_KEEP_MAC),
    Attribute.RESTORE_WITHOUT_STATE,
)
ENTRIES = (Attribute.ENTRY, Attribute.ENTRY_BEFORE)


@dataclass(frozen=True)
class Action:
    """One claim: the leaf as read, and what it becomes. `message` and `attempts` None: as they are.

    `removed` are attributes that go with it. `group`, `start_wait` (seconds) and `bandwidth` (MiB/s; 0: no limit) are
    noted on the leaf, None: as they are. `said` is what the log says instead of the move.
    """

    leaf: Leaf
    mode: Mode
    state: str
    return_value: int = 0
    message: str | None = None
    attempts: int | None = None
    removed: tuple[Attribute, ...] = ()
    group: str = ""
    start_wait: int | None = None
    bandwidth: int | None = None
    said: str = ""

    @property
    def sentence(self) -> str:
        """What the log says of it."""
        why = f" ({self.message})" if self.message else ""
        pace = f", at most {self.bandwidth} MiB/s" if self.bandwidth else ""
        return f"{_named(self.leaf)} {self.said or f'{self.leaf.raw_mode} → {self.mode}'}{pace}{why}"

    @property
    def outcome(self) -> Leaf:
        """The leaf once the claim is won."""
        moved = replace(
            self.leaf,
            raw_mode=self.mode.value,
            state=self.state,
            return_value=self.return_value,
            message=self.leaf.message if self.message is None else self.message,
            attempts=self.leaf.attempts if self.attempts is None else self.attempts,
            group=self.group or self.leaf.group,
            start_wait=self.leaf.start_wait if self.start_wait is None else self.start_wait,
            bandwidth=self.leaf.bandwidth if self.bandwidth is None else self.bandwidth,
        )
        return _without(moved, self.removed)


@dataclass(frozen=True)
class Removal:
    """The leaf goes: its set is deleted, or it was never a backup of its machine."""

    leaf: Leaf
    why: str

    @property
    def sentence(self) -> str:
        """What the log says of it."""
        return f"{_named(self.leaf)} {self.leaf.raw_mode} → removed ({self.why})"


@dataclass(frozen=True)
class _ToTheEntry:
    """What a restore does to the machine's entry."""

    leaf: Leaf
    said: ClassVar[str]

    @property
    def sentence(self) -> str:
        """What the log says of it."""
        return f"{_named(self.leaf)} the machine's entry is to be {self.said}"


class BringInLine(_ToTheEntry):
    """It is to become what vmkeepEntry says; then the restore is asked for."""

    said = "brought in line with the saved one"


class PutBack(_ToTheEntry):
    """It is to become what vmkeepEntryBefore says: the restore did not happen."""

    said = "put back as it was before the restore"


@dataclass(frozen=True)
class LetRunOn:
    """Those of its group that come before it run: the saved machine may, too."""

    leaf: Leaf

    @property
    def sentence(self) -> str:
        """What the log says of it."""
        return f"{_named(self.leaf)} may run on: nobody of group {self.leaf.group} is to run before it any more"

    @property
    def outcome(self) -> Leaf:
        """The leaf once that is noted."""
        return replace(self.leaf, start_wait=0)


Step: TypeAlias = Action | Removal | BringInLine | PutBack | LetRunOn


def has_leftovers(leaf: Leaf) -> bool:
    """Whether an ended leaf still carries what only a restore under way should."""
    return bool(leaf.conflicts or leaf.entry or leaf.entry_before)


def _named(leaf: Leaf) -> str:
    return f"{leaf.machine}: {leaf.timestamp}"


def _without(leaf: Leaf, removed: tuple[Attribute, ...]) -> Leaf:
    wishes = leaf.wishes
    if removed == RESTORES_OWN:
        wishes = Wishes(original=wishes.original, keep_old=wishes.keep_old, delete_last=wishes.delete_last)
    return replace(
        leaf,
        conflicts="" if Attribute.CONFLICTS in removed else leaf.conflicts,
        entry="" if Attribute.ENTRY in removed else leaf.entry,
        entry_before="" if Attribute.ENTRY_BEFORE in removed else leaf.entry_before,
        wishes=wishes,
    )
