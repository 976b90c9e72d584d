"""The command `restore`: walks one leaf through a restore, with its admin's decision in the middle.

Writes nothing that an admin could not write with ldapmodify: the first mode with the wishes, the second after the
decision, or `finished` to back out. All else is the agent's and the controller's doing, and only followed here.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from vmkeep.console.another_name import take_back
from vmkeep.console.backing_out import back_out
from vmkeep.console.conflicts import read_conflicts
from vmkeep.console.following import Following, Standstill
from vmkeep.console.restoring import Step, failure, is_touched, refuse_while_old_is_kept, step_of, ways_on
from vmkeep.console.terminal import Answer, Terminal
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.grouping import is_inconsistent
from vmkeep.contract.leaf import NOW, Leaf, Wishes
from vmkeep.contract.modes import ROWS, Kind, Mode
from vmkeep.contract.names import Attribute
from vmkeep.directory.catalogue import Catalogue, Report
from vmkeep.directory.port import Claim

RESTORED, FAILED, UNTOUCHED = 0, 1, 3
_CONTROLLER_SECONDS = 5.0
_AGENT_SECONDS = 10.0


@dataclass(frozen=True)
class Asked:
    """What the admin asked for on the command line. `seconds` bound each wait, a person's thinking left out.

    `is_begun`: the leaf was made for this very restore.
    """

    wishes: Wishes = field(default_factory=Wishes)
    yes: bool = False
    only_show: bool = False
    seconds: float = 86400.0
    is_begun: bool = False


def restore(catalogue: Catalogue, leaf: Leaf, asked: Asked, terminal: Terminal) -> int:
    """Restore from a leaf, or go on with its restore; returns the exit code. Raises what the store raises."""
    if leaf.is_in_restore and not asked.is_begun:
        _check_same(leaf, asked)
        terminal.say(f"{leaf.machine}: going on with the restore of {leaf.timestamp}, which stands at {leaf.raw_mode}")
    if is_inconsistent(leaf.group_consistency):
        terminal.say(
            f"{leaf.machine}: {leaf.timestamp} is whole, and not one instant with its group {leaf.group}: "
            f"{leaf.group_consistency}"
        )
    run = Restore(catalogue, leaf, asked, terminal)
    try:
        with Following(catalogue, leaf, asked.seconds) as following:
            return run.run(following)
    except TryLater as why:
        return run.left(str(why))
    except KeyboardInterrupt:
        return run.left(f"{leaf.machine}: interrupted")
    finally:
        terminal.quiet()


class Restore:
    """One restore as this command sees it."""

    def __init__(
        self,
        catalogue: Catalogue,
        leaf: Leaf,
        asked: Asked,
        terminal: Terminal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalogue = catalogue
        self._leaf = leaf
        self._asked = asked
        self._terminal = terminal
        self._clock = clock
        self._started = clock()
        self._standstill = Standstill(clock)
        self._before: Leaf | None = None
        # What `--as` began is taken back whole; what another call left waiting, --diff leaves waiting.
        self._is_ours = bool(leaf.wishes.original)
        self._said = leaf.message

    def run(self, following: Following) -> int:
        """Look, do the next step, until there is none."""
        for leaf in following.looks():
            code = self._take(step_of(leaf, self._before), leaf, following)
            if code is not None:
                return code
        raise AssertionError("a leaf is looked at until time is up")

    def left(self, why: str) -> int:
        """Stop following; says what becomes of the restore, and how to go on."""
        machine = self._leaf.machine
        if is_touched(self._before):
            self._terminal.say(f"{why}; the machine is being restored, with or without this command")
            self._terminal.say(f"see how it goes with `vmkeep status {machine}` or `{self._again}`")
            return FAILED
        self._terminal.say(why)
        if self._before is None:
            self._terminal.say(f"{machine}: nothing was touched")
        else:
            self._terminal.say(f"{machine}: nothing of the machine was touched; {ways_on(machine)}")
        return UNTOUCHED

    def _take(self, step: Step, leaf: Leaf | None, following: Following) -> int | None:
        if leaf is None or step is Step.ENDED:
            self._terminal.quiet()
            return self._restored(self._before) if step is Step.RESTORED and self._before else self._ended(leaf)
        if step is Step.BEGIN:
            self._begin(leaf)
            return None
        if step is Step.DECIDE:
            return self._decide(leaf, following)
        self._before = leaf
        if step is Step.WAIT:
            return self._wait(leaf)
        self._terminal.quiet()
        return self._restored(leaf) if step is Step.RESTORED else self._failed(leaf)

    # steps

    def _begin(self, leaf: Leaf) -> None:
        refuse_while_old_is_kept(leaf)
        changes = {**_removed(leaf), **_wished(self._asked.wishes)}
        self._move(leaf, Mode.UNRETAIN_SMALL_FILES, changes)
        self._is_ours = True

    def _decide(self, leaf: Leaf, following: Following) -> int | None:
        self._terminal.quiet()
        self._before = leaf
        self._show(leaf)
        if self._asked.only_show:
            self._terminal.say(back_out(self._catalogue, leaf) if self._is_ours else ways_on(leaf.machine))
            return UNTOUCHED
        if self._asked.wishes.without_state and leaf.wishes.without_state is None:
            self._terminal.say(f"{leaf.machine}: started without its saved memory, as asked for on the command line")
        if not self._asked.yes:
            answer = self._terminal.ask(f"Restore {leaf.machine} as it was at {leaf.timestamp}?")
            if answer is not Answer.YES:
                return self._stopped(leaf, answer)
            following.patience_from_now()
        self._move(leaf, Mode.UNRETAIN_LARGE_FILES, _wished(self._asked.wishes))
        return None

    def _wait(self, leaf: Leaf) -> int | None:
        self._terminal.progress(leaf)
        if leaf.mode is Mode.UNRETAINED_LARGE_FILES and leaf.message not in ("", self._said):
            self._terminal.say(leaf.message)
        self._said = leaf.message
        kind = ROWS[leaf.mode].kind if leaf.mode else None
        if kind is Kind.IMPERATIVE and self._standstill.is_due(leaf, _AGENT_SECONDS):
            self._terminal.say(f"{leaf.machine}: no agent has taken {leaf.raw_mode} up yet; {self._whose_agent()}")
        if leaf.mode is Mode.UNRETAINED_LARGE_FILES and self._standstill.is_due(leaf, _CONTROLLER_SECONDS):
            self._terminal.say(
                f"{leaf.machine}: no controller seems to run, which would go on from {leaf.raw_mode}; start it "
                "(`vmkeep-controller serve`), or apply ldif/edits/restore.ldif, or back out with "
                f"`vmkeep abort {leaf.machine}`"
            )
        if leaf.mode is Mode.RESTORED and self._standstill.is_due(leaf, _CONTROLLER_SECONDS):
            self._terminal.say(
                f"{leaf.machine}: no controller seems to run; the leaf stays at {leaf.raw_mode} until one does"
            )
            return self._restored(leaf)
        return None

    def _stopped(self, leaf: Leaf, answer: Answer) -> int:
        if answer is Answer.NOBODY:
            way = f"`{self._again} --yes` goes on, `vmkeep abort {leaf.machine}` backs out"
            self._terminal.say(f"{leaf.machine}: waits for a decision, and there is no terminal to ask at: {way}")
        else:
            self._terminal.say(back_out(self._catalogue, leaf))
        return UNTOUCHED

    def _failed(self, leaf: Leaf) -> int:
        self._terminal.say(failure(leaf))
        if is_touched(leaf) and leaf.wishes.original:
            self._terminal.say(f"{leaf.machine}: `vmkeep abort {leaf.machine}` removes what was made for it")
        elif is_touched(leaf):
            left = "was put back as it was" if leaf.was_put_back else "is NOT as it was; first do what is left to do"
            self._terminal.say(f"{leaf.machine}: {left}; `vmkeep abort {leaf.machine}` ends this restore")
        elif leaf.wishes.original:
            self._terminal.say(back_out(self._catalogue, leaf))
        else:
            left = "nothing of the machine was touched" if leaf.was_put_back else "its entry is NOT as it was"
            self._terminal.say(f"{leaf.machine}: {left}; {ways_on(leaf.machine)}")
        return FAILED

    def _restored(self, leaf: Leaf) -> int:
        said = f": {leaf.message}" if leaf.message else ""
        took = self._clock() - self._started
        self._terminal.say(
            f"{leaf.machine}: restored as it was at {leaf.timestamp}, {took:.1f} s after this command began{said}"
        )
        if leaf.wishes.keep_old:
            self._terminal.say(
                f"{leaf.machine}: what was replaced stays in retain until {Attribute.KEEP_OLD} is taken off the leaf"
            )
        return RESTORED

    def _ended(self, leaf: Leaf | None) -> int:
        now = f"stands at {leaf.raw_mode} with {leaf.return_value}" if leaf else "is gone"
        said = f": {leaf.message}" if leaf and leaf.message else ""
        sentence = f"{self._leaf.machine}: somebody else moved the leaf {self._leaf.timestamp}; it {now}{said}"
        self._terminal.say(sentence)
        if is_touched(self._before):
            return FAILED
        if self._leaf.wishes.original and (leaf is None or leaf.mode is Mode.FINISHED):
            self._terminal.say(take_back(self._catalogue, self._leaf))
        return UNTOUCHED

    # words and writes

    def _show(self, leaf: Leaf) -> None:
        if leaf.is_failed:
            self._terminal.say(failure(leaf))
        conflicts = read_conflicts(leaf.conflicts)
        if conflicts is None:
            self._terminal.say(
                f"{leaf.machine}: what differs cannot be shown: {Attribute.CONFLICTS} is not the JSON it should be"
            )
        elif conflicts:
            self._terminal.table(conflicts)
        elif not leaf.wishes.original:
            self._terminal.say(f"{leaf.machine}: nothing differs between the set and the live machine")
        if leaf.message and not leaf.is_failed:
            self._terminal.say(leaf.message)

    def _move(self, leaf: Leaf, mode: Mode, changes: dict[str, Sequence[str]]) -> None:
        report = Report(NOW, message="", extra=changes)
        if self._catalogue.claim(leaf, mode, report) is Claim.WON:
            self._before = replace(leaf, raw_mode=mode.value, state=NOW, return_value=0)
            self._said = ""

    @property
    def _again(self) -> str:
        return f"vmkeep restore {self._leaf.machine}"

    def _whose_agent(self) -> str:
        machine = self._catalogue.machine_entry(self._leaf.machine)
        node = machine.node if machine else None
        return f"does vmkeep-nodeagent run on {node}?" if node else "its entry names no sstNode"


def _wished(wishes: Wishes) -> dict[str, Sequence[str]]:
    """What was asked for on the command line, and nothing else."""
    wished: dict[str, Sequence[str]] = {
        Attribute.RESTORE_DISK: wishes.disks,
        Attribute.RESTORE_WITHOUT_STATE: ("TRUE",) if wishes.without_state else (),
        Attribute.KEEP_OLD: ("TRUE",) if wishes.keep_old else (),
    }
    return {name: values for name, values in wished.items() if values}


def _removed(leaf: Leaf) -> dict[str, Sequence[str]]:
    """Wishes of an earlier restore, which are not this one's; what one of them kept is for the admin to let go."""
    held: dict[str, object] = {
        Attribute.RESTORE_DISK: leaf.wishes.disks,
        Attribute.RESTORE_WITHOUT_STATE: leaf.wishes.without_state is not None,
        Attribute.CONFLICTS: leaf.conflicts,
    }
    return {name: () for name, value in held.items() if value}


def _check_same(leaf: Leaf, asked: Asked) -> None:
    """Refused where a restore that is past its decision is to become another one."""
    if leaf.mode in (Mode.UNRETAINED_SMALL_FILES, Mode.UNRETAIN_SMALL_FILES) or leaf.is_failed:
        return
    wishes = asked.wishes
    other_disks = wishes.disks and set(wishes.disks) != set(leaf.wishes.disks)
    if asked.only_show or other_disks or (wishes.without_state and not leaf.wishes.without_state):
        raise Refused(
            ReturnValue.CANNOT_LOCK_MACHINE,
            f"{leaf.machine}: a restore of {leaf.timestamp} is at {leaf.raw_mode}, asked for otherwise; "
            f"{ways_on(leaf.machine)}",
        )
