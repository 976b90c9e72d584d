"""The command `delete`: asks the agent to remove one backup's files, and follows until the leaf is gone."""

from collections.abc import Sequence
from datetime import datetime

from vmkeep.console.following import Following, Standstill, TimeIsUp
from vmkeep.console.restoring import failure, ways_on
from vmkeep.console.terminal import Answer, Terminal
from vmkeep.contract.codes import NOTHING_REMOVED, ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import NOW, Leaf
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.contract.pruning import why_held
from vmkeep.directory.catalogue import Catalogue, Report
from vmkeep.directory.port import Claim

DELETED, FAILED, UNTOUCHED = 0, 1, 3
_CONTROLLER_SECONDS = 5.0
_AGENT_SECONDS = 10.0


def leaf_named(machine: str, leaves: Sequence[Leaf], timestamp: str) -> Leaf:
    """One backup of a machine by its name; Refused where there is none."""
    leaf = next((leaf for leaf in leaves if leaf.timestamp == timestamp), None)
    if leaf is None:
        there = ", ".join(sorted(leaf.timestamp for leaf in leaves)) or "none"
        raise Refused(ReturnValue.MISSING_FILES, f"{machine}: there is no backup {timestamp}; there are: {there}")
    return leaf


def may_delete(machine: str, leaves: Sequence[Leaf], timestamp: str, now: datetime, *, last: bool) -> Leaf:
    """The leaf to delete; Refused where it is held, at work, of use to the machine, or the last good one. Pure."""
    leaf = leaf_named(machine, leaves, timestamp)
    hold = why_held(leaf, now)
    why = f"it is {hold}; `vmkeep release {machine} {timestamp}` first" if hold else _why_not(leaf, leaves, last)
    if why:
        raise Refused(
            ReturnValue.CANNOT_LOCK_MACHINE,
            f"{machine}: {timestamp} stands at {leaf.raw_mode} and is not deleted: {why}",
        )
    return leaf


def delete(catalogue: Catalogue, leaf: Leaf, terminal: Terminal, seconds: float, *, last: bool) -> int:
    """Have a backup removed; returns the exit code. Raises what the store raises, Refused when somebody was faster."""
    if leaf.mode not in (Mode.DELETE, Mode.DELETED) and not leaf.is_at_work:
        extra: dict[str, Sequence[str]] = {Attribute.DELETE_LAST: ("TRUE",)} if last else {}
        if catalogue.claim(leaf, Mode.DELETE, Report(NOW, message="", extra=extra)) is Claim.LOST:
            raise Refused(
                ReturnValue.CANNOT_LOCK_MACHINE,
                f"{leaf.machine}: somebody else moved {leaf.timestamp} meanwhile; nothing was asked for",
            )
    try:
        with Following(catalogue, leaf, seconds) as following:
            return _follow(following, leaf, catalogue, terminal)
    except TimeIsUp as why:
        terminal.say(f"{why}; the agent goes on with it as soon as it can")
        return FAILED
    except KeyboardInterrupt:
        terminal.say(f"{leaf.machine}: interrupted; the agent goes on removing {leaf.timestamp}")
        return FAILED
    finally:
        terminal.quiet()


def confirmed(leaf: Leaf, terminal: Terminal) -> bool:
    """Ask; nobody there to ask is a no."""
    answer = terminal.ask(f"Delete the backup {leaf.timestamp} of {leaf.machine}? There is no way back.")
    if answer is Answer.YES:
        return True
    hint = "; there is no terminal to ask at: say --yes" if answer is Answer.NOBODY else ""
    terminal.say(f"{leaf.machine}: nothing was deleted{hint}")
    return False


def _follow(following: Following, leaf: Leaf, catalogue: Catalogue, terminal: Terminal) -> int:
    standstill = Standstill()
    for now in following.looks():
        if now is None:
            terminal.quiet()
            terminal.say(f"{leaf.machine}: {leaf.timestamp} is deleted")
            return DELETED
        if now.is_failed:
            terminal.quiet()
            return _failed(catalogue, leaf, now, terminal)
        if now.mode is Mode.DELETED and standstill.is_due(now, _CONTROLLER_SECONDS):
            terminal.quiet()
            terminal.say(f"{leaf.machine}: the files of {leaf.timestamp} are deleted; a controller removes the leaf")
            return DELETED
        if now.mode not in (Mode.DELETE, Mode.DELETING, Mode.DELETED):
            terminal.quiet()
            terminal.say(f"{leaf.machine}: somebody else moved {leaf.timestamp} to {now.raw_mode}")
            return FAILED
        terminal.progress(now)
        if now.mode is Mode.DELETE and standstill.is_due(now, _AGENT_SECONDS):
            terminal.say(f"{leaf.machine}: no agent has taken this up yet; does vmkeep-nodeagent run on its node?")
    raise AssertionError("a leaf is looked at until time is up")


def _failed(catalogue: Catalogue, asked: Leaf, now: Leaf, terminal: Terminal) -> int:
    terminal.say(failure(now))
    if now.return_value in NOTHING_REMOVED and asked.is_good_backup:
        # The leaf must not stand as a failure that it is not.
        report = Report(asked.state, message=asked.message, extra={Attribute.DELETE_LAST: ()})
        if catalogue.claim(now, Mode.FINISHED, report) is Claim.WON:
            terminal.say(f"{asked.machine}: {asked.timestamp} is the good backup it was")
    return FAILED


def _why_not(leaf: Leaf, leaves: Sequence[Leaf], last: bool) -> str | None:
    if leaf.is_in_restore:
        return f"a restore uses it; {ways_on(leaf.machine)}"
    if leaf.mode is None:
        return "another tool wrote this mode"
    newer = [one for one in leaves if one.is_good_backup and one.timestamp > leaf.timestamp]
    if leaf.mode is Mode.MERGING and leaf.is_failed and not newer:
        return "the machine's images may still need its files in retain; back the machine up first, or merge it again"
    if leaf.is_in_flight and leaf.mode not in (Mode.DELETE, Mode.DELETING):
        return "it is at work; wait for its end"
    others = [one for one in leaves if one.is_good_backup and one is not leaf]
    if leaf.is_good_backup and not others and not last:
        return "it is the last good backup; say --last to delete it all the same"
    return None
