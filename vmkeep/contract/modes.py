"""The one table of modes: who moves a leaf into each, what a restart does with it, and what it means.

Controller, agent, access rules, documentation and tests read this table; nothing else lists modes.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum


class Mode(StrEnum):
    """A value of sstProvisioningMode. The directory compares it without case."""

    INITIALIZE = "initialize"
    INITIALIZED = "initialized"
    SNAPSHOT = "snapshot"
    SNAPSHOTTING = "snapshotting"
    SNAPSHOTTED = "snapshotted"
    MERGE = "merge"
    MERGING = "merging"
    MERGED = "merged"
    RETAIN = "retain"
    RETAINING = "retaining"
    RETAINED = "retained"
    FINISHED = "finished"
    UNRETAIN_SMALL_FILES = "unretainSmallFiles"
    UNRETAINING_SMALL_FILES = "unretainingSmallFiles"
    UNRETAINED_SMALL_FILES = "unretainedSmallFiles"
    UNRETAIN_LARGE_FILES = "unretainLargeFiles"
    UNRETAINING_LARGE_FILES = "unretainingLargeFiles"
    UNRETAINED_LARGE_FILES = "unretainedLargeFiles"
    RESTORE = "restore"
    RESTORING = "restoring"
    RESTORED = "restored"
    DELETE = "delete"
    DELETING = "deleting"
    DELETED = "deleted"

    @classmethod
    def read(cls, value: str) -> "Mode | None":
        """The mode a directory value stands for, whatever its case; None for a foreign one."""
        return _BY_FOLDED_NAME.get(value.casefold())


_BY_FOLDED_NAME = {mode.value.casefold(): mode for mode in Mode}


class Kind(Enum):
    """What a mode says of the work."""

    IMPERATIVE = "imperative"  # asks for a step
    AT_WORK = "at work"  # somebody claimed it; with a return value: it failed here
    DONE = "done"  # the step ended well
    TERMINAL = "terminal"  # nothing follows by itself


class Actor(Enum):
    """Who writes a mode."""

    CONTROLLER = "controller"
    AGENT = "agent"
    ADMIN_OR_CONTROLLER = "admin or controller"


class Restart(Enum):
    """What whoever finds a leaf in this mode after a restart does with it."""

    DECIDE = "decide from a fresh read"
    CLAIM = "claim it anew"
    RESUME = "ask journal and host, then go on or undo"
    WAIT = "wait for the other side"
    NOTHING = "nothing"


class Circle(Enum):
    """Which of the protocol's walks a mode belongs to."""

    BACKUP = "backup"
    RESTORE = "restore"
    DELETE = "delete"


@dataclass(frozen=True)
class Row:
    """One mode's line in the table. `follows` are the modes it may be reached from."""

    mode: Mode
    kind: Kind
    writer: Actor
    circle: Circle
    follows: tuple[Mode, ...]
    restart: Restart
    meaning: str

    @property
    def state_is_time(self) -> bool:
        """Whether sstProvisioningState says when, rather than 0."""
        return self.kind in (Kind.DONE, Kind.TERMINAL) or self.mode is Mode.INITIALIZE


def _step(
    circle: Circle, after: tuple[Mode, ...], modes: tuple[Mode, Mode, Mode], asker: Actor, what: str
) -> tuple[Row, Row, Row]:
    """The three rows every step of an agent has: asked for, at work, done."""
    asked, working, done = modes
    return (
        Row(asked, Kind.IMPERATIVE, asker, circle, (*after, working), Restart.CLAIM, f"the agent is asked to {what}"),
        Row(working, Kind.AT_WORK, Actor.AGENT, circle, (asked,), Restart.RESUME, f"the agent is at work to {what}"),
        Row(done, Kind.DONE, Actor.AGENT, circle, (working,), Restart.DECIDE, f"done: {what}"),
    )


_M = Mode
TABLE: tuple[Row, ...] = (
    Row(_M.INITIALIZE, Kind.DONE, Actor.CONTROLLER, Circle.BACKUP, (), Restart.DECIDE, "the leaf was added"),
    Row(
        _M.INITIALIZED,
        Kind.DONE,
        Actor.CONTROLLER,
        Circle.BACKUP,
        (_M.INITIALIZE,),
        Restart.DECIDE,
        "the leaf is ready",
    ),
    *_step(
        Circle.BACKUP,
        (_M.INITIALIZED,),
        (_M.SNAPSHOT, _M.SNAPSHOTTING, _M.SNAPSHOTTED),
        Actor.CONTROLLER,
        "save memory and disks of one instant and let the machine run on",
    ),
    *_step(
        Circle.BACKUP,
        (_M.SNAPSHOTTED,),
        (_M.MERGE, _M.MERGING, _M.MERGED),
        Actor.CONTROLLER,
        "make the live image whole, so that it no longer names the retained one",
    ),
    *_step(
        Circle.BACKUP,
        (_M.MERGED,),
        (_M.RETAIN, _M.RETAINING, _M.RETAINED),
        Actor.CONTROLLER,
        "carry the set to the backup directory",
    ),
    Row(
        _M.FINISHED,
        Kind.TERMINAL,
        Actor.CONTROLLER,
        Circle.BACKUP,
        (
            *(_M.RETAINED, _M.RESTORED, _M.SNAPSHOT, _M.INITIALIZED),
            # backing out: nothing of the machine was touched, or it failed and was put back
            *(_M.UNRETAIN_SMALL_FILES, _M.UNRETAINING_SMALL_FILES, _M.UNRETAINED_SMALL_FILES),
            *(_M.UNRETAIN_LARGE_FILES, _M.UNRETAINING_LARGE_FILES, _M.UNRETAINED_LARGE_FILES),
            *(_M.RESTORING, _M.DELETING),
        ),
        Restart.NOTHING,
        "the end; with return value 0 a good backup",
    ),
    *_step(
        Circle.RESTORE,
        (_M.FINISHED,),
        (_M.UNRETAIN_SMALL_FILES, _M.UNRETAINING_SMALL_FILES, _M.UNRETAINED_SMALL_FILES),
        Actor.ADMIN_OR_CONTROLLER,
        "bring description and directory entry back to retain and report conflicts",
    ),
    *_step(
        Circle.RESTORE,
        # also again: where the machine's entry could not be brought in line, or the restore failed and was put back
        (_M.UNRETAINED_SMALL_FILES, _M.UNRETAINED_LARGE_FILES, _M.RESTORING),
        (_M.UNRETAIN_LARGE_FILES, _M.UNRETAINING_LARGE_FILES, _M.UNRETAINED_LARGE_FILES),
        Actor.ADMIN_OR_CONTROLLER,
        "bring memory and disks back to retain and check them",
    ),
    *_step(
        Circle.RESTORE,
        (_M.UNRETAINED_LARGE_FILES,),
        (_M.RESTORE, _M.RESTORING, _M.RESTORED),
        Actor.ADMIN_OR_CONTROLLER,
        "put the machine back as it was",
    ),
    *_step(
        Circle.DELETE,
        (_M.FINISHED,),
        (_M.DELETE, _M.DELETING, _M.DELETED),
        Actor.ADMIN_OR_CONTROLLER,
        "remove the files of this backup",
    ),
)
ROWS: dict[Mode, Row] = {row.mode: row for row in TABLE}


def may_move(before: Mode, after: Mode) -> bool:
    """Whether the protocol knows this move."""
    return before in ROWS[after].follows


def at_work(imperative: Mode) -> Mode:
    """What an agent claims an imperative mode with: snapshot → snapshotting."""
    return _next_of_kind(imperative, Kind.IMPERATIVE, Kind.AT_WORK)


def done(working: Mode) -> Mode:
    """What an agent ends a claimed mode with: snapshotting → snapshotted."""
    return _next_of_kind(working, Kind.AT_WORK, Kind.DONE)


def asked(working: Mode) -> Mode:
    """What a claimed mode was asked for with: snapshotting → snapshot."""
    if ROWS[working].kind is not Kind.AT_WORK:
        raise ValueError(f"{working} is not a mode of work")
    return ROWS[working].follows[0]


def _next_of_kind(mode: Mode, kind: Kind, wanted: Kind) -> Mode:
    if ROWS[mode].kind is not kind:
        raise ValueError(f"{mode} is not {kind.value}")
    return next(row.mode for row in TABLE if row.kind is wanted and row.follows == (mode,))


def modes(*, kind: Kind | None = None, writer: Actor | None = None) -> tuple[Mode, ...]:
    """The modes of one kind or writer, in the table's order."""
    return tuple(row.mode for row in TABLE if kind in (None, row.kind) and writer in (None, row.writer))
