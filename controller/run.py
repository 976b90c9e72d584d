"""The start of a run: which machines, and one leaf for each, all of the same time or each of the slot that is due.

Called by the command `run`, by the schedule and, rehearsed, by `plan`.

One bad machine never stops the others; two controllers that start at once never give a machine two leaves in flight.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum

from controller.decide import Bounds, is_ended
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.machine import check_name, check_node
from vmkeep.contract.modes import ROWS, Circle, Mode
from vmkeep.contract.plan import is_excluded
from vmkeep.contract.pruning import is_being_deleted
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory.catalogue import LEAVES, Catalogue
from vmkeep.directory.port import AllOf, Equals
from vmkeep.directory.survey import Surveyed, survey, survey_one

_ROUNDS = 20  # of stepping back when several controllers start at once; each makes a further clash less likely


class Fate(Enum):
    """What becomes of a machine in this run."""

    BACK_UP = "backed up"
    TAKEN_ON = "an older leaf is taken on"
    EXCLUDED = "left out"
    REFUSED = "refused"


@dataclass(frozen=True)
class Choice:
    """One machine of the run. `leaf` is the DN that is watched, named by `timestamp`; `sentence` and `code` say why.

    Before the start, `timestamp` is the slot that is due (none: the time of the start) and `sentence` goes on its leaf.
    """

    machine: str
    fate: Fate
    leaf: str = ""
    timestamp: str = ""
    sentence: str = ""
    code: ReturnValue = ReturnValue.SUCCESS
    has_backup_subtree: bool = True
    begun: datetime | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The leaf's key, as `key_of` has it."""
        return self.machine.casefold(), self.timestamp


@dataclass(frozen=True)
class Started:
    """A run under way: its common timestamp and what becomes of each machine."""

    timestamp: str
    choices: tuple[Choice, ...]

    @property
    def machines(self) -> frozenset[str]:
        """Folded names of the machines that are moved by this run."""
        return frozenset(choice.machine.casefold() for choice in self.choices if choice.leaf)


Reader = Callable[[], Iterable[Leaf]]


def choose(catalogue: Catalogue, names: Sequence[str] | None) -> tuple[Choice, ...]:
    """The machines of these names, or (None) all, in the order of their names."""
    if names is None:
        return tuple(sorted(map(_choice, survey(catalogue)), key=lambda choice: choice.machine))
    return tuple(_choice_by_name(catalogue, name) for name in dict.fromkeys(names))


def start(
    catalogue: Catalogue,
    choices: Sequence[Choice],
    now: datetime,
    bounds: Bounds,
    read_leaves: Reader,
    step_back: Callable[[int], None],
) -> Started:
    """Add the leaves, in mode initialize. `read_leaves` reads those not ended; `step_back` waits a random moment."""
    timestamp = _free_timestamp(catalogue, now) if any(not one.timestamp for one in choices) else to_timestamp(now)
    run = _Run(catalogue, timestamp, now, bounds, read_leaves)
    settled = {choice.machine: choice for choice in choices if choice.fate is not Fate.BACK_UP}
    wanted = [choice for choice in choices if choice.fate is Fate.BACK_UP]
    for round_number in range(_ROUNDS):
        for choice in run.attempt(wanted):
            settled[choice.machine] = choice
        wanted = [choice for choice in wanted if choice.machine not in settled]
        if not wanted:
            break
        step_back(round_number)
    settled |= {choice.machine: _crowded_out(choice) for choice in wanted}
    return Started(run.timestamp, tuple(settled[choice.machine] for choice in choices))


class _Run:
    """Gives machines their leaves, under one timestamp unless a machine has its own."""

    def __init__(
        self, catalogue: Catalogue, timestamp: str, now: datetime, bounds: Bounds, read_leaves: Reader
    ) -> None:
        self.timestamp = timestamp
        self._catalogue = catalogue
        self._now = now
        self._bounds = bounds
        self._read_leaves = read_leaves

    def attempt(self, wanted: Sequence[Choice]) -> Iterator[Choice]:
        """One round; machines over which another controller was met are left for the next."""
        busy = self._busy()
        yield from (_taken_on(choice, busy[_key(choice)]) for choice in wanted if _key(choice) in busy)
        added = [self._added(choice) for choice in wanted if _key(choice) not in busy]
        yield from (choice for choice in added if choice.fate is Fate.REFUSED)
        # Of two controllers at least one sees the other's leaf at this second look, and a leaf that is not alone is
        # taken back: they may both step back, but never both go on.
        busy = self._busy()
        for choice in added:
            if choice.fate is Fate.BACK_UP and self._is_alone(choice, busy):
                yield choice
            elif choice.fate is Fate.TAKEN_ON and _key(choice) not in busy and self._catalogue.leaf(choice.leaf):
                yield choice  # another controller added it, and it has ended already

    def _busy(self) -> dict[str, list[Leaf]]:
        found: dict[str, list[Leaf]] = {}
        for leaf in self._read_leaves():
            # A restored leaf only waits for its end, which the first turn of any controller writes; and agents delete
            # one backup and make another in whatever order they come.
            is_no_matter = leaf.mode is Mode.RESTORED or is_being_deleted(leaf)
            if not is_ended(leaf, self._bounds) and not is_no_matter:
                found.setdefault(leaf.machine.casefold(), []).append(leaf)
        return found

    def _added(self, choice: Choice) -> Choice:
        """The choice with its leaf; refused where the directory does not take it.

        Where another controller added the very same leaf just now, the next round takes that one on.
        """
        timestamp = choice.timestamp or self.timestamp
        dn = self._catalogue.tree.leaf(choice.machine, timestamp)
        try:
            if not choice.has_backup_subtree:
                self._catalogue.add_backup_subtree(choice.machine)
            mine = self._catalogue.add_leaf(choice.machine, timestamp, to_timestamp(self._now), choice.sentence)
        except Refused as why:
            return _refused(choice.machine, why.code, f"{choice.machine}: the leaf cannot be added: {why.sentence}")
        if not mine:
            return Choice(
                choice.machine, Fate.TAKEN_ON, dn, timestamp, f"another controller added the leaf {timestamp}"
            )
        return replace(choice, leaf=dn, timestamp=timestamp, begun=self._now)

    def _is_alone(self, choice: Choice, busy: dict[str, list[Leaf]]) -> bool:
        others = [leaf for leaf in busy.get(_key(choice), []) if leaf.timestamp != choice.timestamp]
        if others:
            self._catalogue.take_back(choice.leaf)
        return not others


def _choice_by_name(catalogue: Catalogue, name: str) -> Choice:
    try:
        check_name(name)
    except Refused as why:
        return _refused(name, why.code, why.sentence)
    found = survey_one(catalogue, name)
    if found is None:
        return _refused(
            name,
            ReturnValue.CANNOT_FIND_MACHINE,
            f"{name}: there is no machine of this name below {catalogue.tree.machines}; look with: vmkeep status",
        )
    return _choice(found)


def _choice(surveyed: Surveyed) -> Choice:
    machine = surveyed.machine
    try:
        check_name(machine.name)
        if is_excluded(machine.name, surveyed.sources):
            return Choice(machine.name, Fate.EXCLUDED, sentence="sstBackupExcludeFromBackup is TRUE")
        check_node(machine)
    except Refused as why:
        return _refused(machine.name, why.code, why.sentence)
    return Choice(machine.name, Fate.BACK_UP, has_backup_subtree=machine.has_backup_subtree)


def _refused(machine: str, code: ReturnValue, sentence: str) -> Choice:
    return Choice(machine, Fate.REFUSED, sentence=sentence, code=code)


def _taken_on(choice: Choice, leaves: Sequence[Leaf]) -> Choice:
    leaf = min(leaves, key=lambda leaf: leaf.timestamp)
    if _waits_for_a_person(leaf):
        return _refused(
            choice.machine,
            ReturnValue.CANNOT_LOCK_MACHINE,
            f"{choice.machine}: the leaf {leaf.timestamp} is in mode {leaf.raw_mode}; end that first, then back up",
        )
    sentence = f"the leaf {leaf.timestamp} was in flight ({leaf.raw_mode}) and was taken on instead of a new one"
    return Choice(choice.machine, Fate.TAKEN_ON, leaf.dn, leaf.timestamp, sentence)


def _waits_for_a_person(leaf: Leaf) -> bool:
    return leaf.mode is not None and ROWS[leaf.mode].circle is not Circle.BACKUP


def _crowded_out(choice: Choice) -> Choice:
    return _refused(
        choice.machine,
        ReturnValue.CANNOT_LOCK_MACHINE,
        f"{choice.machine}: other controllers keep starting backups of it; let one controller run at a time",
    )


def _free_timestamp(catalogue: Catalogue, now: datetime) -> str:
    """The second now, or the next one that names no leaf yet."""
    moment = now.replace(microsecond=0)
    while any(catalogue.leaves(matching=AllOf((LEAVES, Equals("ou", to_timestamp(moment)))))):
        moment += timedelta(seconds=1)
    return to_timestamp(moment)


def _key(choice: Choice) -> str:
    return choice.machine.casefold()
