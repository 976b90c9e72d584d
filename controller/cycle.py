"""One cycle of the controller: read every leaf that has not ended, decide, act, say one sentence a step.

Run by the loop for `serve`, and for `run` with the machines chosen there.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from structlog.typing import FilteringBoundLogger

from controller import entries
from controller.actions import Action, BringInLine, LetRunOn, PutBack, Removal, Step
from controller.admission import Admission
from controller.decide import Bounds, View, asked_since, decide, is_over, key_of, next_look
from controller.verdicts import Verdicts
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import NOW, Leaf
from vmkeep.contract.modes import Kind, Mode, modes
from vmkeep.contract.names import Attribute, ObjectClass
from vmkeep.contract.plan import deadline_of
from vmkeep.directory.catalogue import LEAVES, Catalogue, Report, leaf_of
from vmkeep.directory.port import AllOf, AnyOf, Claim, Entry, Equals, Present, Scope
from vmkeep.service.metrics import Metrics
from vmkeep.service.settings import ControllerSettings

# A finished leaf needs the controller only where a restore left something on it. The directory answers this from its
# indexes of modes, states, and the presence of these attributes.
_LEFT_BY_RESTORES = (Attribute.CONFLICTS, Attribute.ENTRY, Attribute.ENTRY_BEFORE, Attribute.RESTORE_FROM)
NOT_ENDED = AllOf(
    (
        LEAVES,
        AnyOf(
            (
                *(Equals(Attribute.MODE, mode) for mode in Mode if mode is not Mode.FINISHED),
                AllOf((Equals(Attribute.STATE, NOW), Equals(Attribute.MODE, Mode.FINISHED))),
                *(Present(name) for name in _LEFT_BY_RESTORES),
            )
        ),
    )
)
_CHANGED = "modifyTimestamp"
_PLAN_IS_FRESH = 300.0  # seconds
_READ = (
    "objectClass",
    "ou",
    Attribute.MODE,
    Attribute.STATE,
    Attribute.EXECUTION_DATE,
    Attribute.RETURN_VALUE,
    Attribute.MESSAGE,
    Attribute.ATTEMPTS,
    *_LEFT_BY_RESTORES,
    Attribute.RESTORE_DISK,
    Attribute.GROUP,
    Attribute.GROUP_CONSISTENCY,
    *(Attribute.START_WAIT, Attribute.STARTED),
    Attribute.PRUNED,
    Attribute.MANIFEST_DIGEST,
    Attribute.EPOCH,
    Attribute.BANDWIDTH,
    _CHANGED,
)
_GENERALIZED_TIME = re.compile(r"(\d{14})Z")


def bounds_of(settings: ControllerSettings) -> Bounds:
    """The bounds the settings give."""
    return Bounds(
        snapshot_deadline=timedelta(seconds=settings.snapshot_deadline_seconds),
        take_up=timedelta(seconds=settings.take_up_seconds),
        attempts=settings.attempts,
        back_off=timedelta(seconds=settings.back_off_seconds),
    )


def utc_now() -> datetime:
    """The time, as the directory wants it."""
    return datetime.now(UTC)


def read_view(catalogue: Catalogue) -> View:
    """Every leaf that has not ended, in the order of the machines' names and the leaves' times."""
    leaves: list[Leaf] = []
    changed: dict[str, datetime] = {}
    for leaf, entry in _leaves(catalogue):
        leaves.append(leaf)
        moment = _time_of_change(entry)
        if moment is not None:
            changed[leaf.dn] = moment
    return View(tuple(sorted(leaves, key=lambda leaf: (leaf.machine, leaf.timestamp))), changed)


@dataclass
class Cycle:
    """What stays the same from cycle to cycle. `only` and `complete` as in View.

    `refused` remembers claims the directory refused for good, by the leaf's key, until somebody writes that leaf.
    Without `admission` all that is due is done at once; without `verdicts` nothing is said of groups. `ended_well` are
    machines whose leaf ended as a good backup, until somebody takes them out.
    """

    catalogue: Catalogue
    bounds: Bounds
    log: FilteringBoundLogger
    metrics: Metrics = field(default_factory=Metrics)
    only: frozenset[str] | None = None
    complete: frozenset[str] = frozenset()
    clock: Callable[[], datetime] = utc_now
    elapsed: Callable[[], float] = time.monotonic
    refused: dict[tuple[str, str], tuple[Leaf, str]] = field(default_factory=dict)
    admission: Admission | None = None
    verdicts: Verdicts | None = None
    _given_up: list[Leaf] = field(default_factory=list)
    _left_alone: set[tuple[str, str]] = field(default_factory=set)
    ended_well: set[str] = field(default_factory=set)
    _known_deadlines: dict[str, tuple[int, float]] = field(default_factory=dict)
    _seen: dict[str, tuple[tuple[Leaf, datetime], float]] = field(default_factory=dict)
    _first_seen: dict[str, float] = field(default_factory=dict)

    def turn(self) -> View:
        """Read, decide and act until nothing is left to do; the view as it is then."""
        view = replace(read_view(self.catalogue), only=self.only, complete=self.complete)
        view = replace(view, changed=self._changed_as_seen_here(view), begun=self._begun_as_seen_here(view))
        self.refused = {key_of(leaf): self.refused[key_of(leaf)] for leaf in view.leaves if self._stays_refused(leaf)}
        leaves = tuple(leaf for leaf in view.leaves if key_of(leaf) not in self.refused)
        view = replace(view, leaves=leaves, nodes=self._nodes_if_needed(view), deadlines=self._deadlines(view))
        view = replace(view, epoch=self.catalogue.epoch())
        self._left_alone = set()
        if self.verdicts:
            self.verdicts.tell(view.leaves, self.only)
        while steps := self._due(view):
            view = self._act(view, steps)
        if self.verdicts and self._given_up:
            self.verdicts.tell_of(self._given_up, view.leaves)
            self._given_up = []
        self.metrics.cycles.inc()
        self.metrics.show_modes(leaf.raw_mode for leaf in view.leaves)
        return view

    def turn_and_wait(self) -> float | None:
        """For the loop: one turn, and in how many seconds it wants the next."""
        return self.seconds_to_next(self.turn())

    def seconds_to_next(self, view: View) -> float | None:
        """When the next turn is due even if nobody writes anything."""
        now = self.clock()
        due = next_look(view, now, self.bounds)
        return None if due is None else max((due - now).total_seconds(), 0.0)

    def _due(self, view: View) -> tuple[Step, ...]:
        now = self.clock()
        steps = self._without_those_left_alone(decide(view, now, self.bounds))
        return self._without_those_left_alone(self.admission.admit(steps, view, now)) if self.admission else steps

    def _without_those_left_alone(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        return tuple(step for step in steps if key_of(step.leaf) not in self._left_alone)

    def _act(self, view: View, steps: tuple[Step, ...]) -> View:
        outcomes = {step.leaf.dn: self._taken(step) for step in steps}
        leaves = (outcomes.get(leaf.dn, leaf) for leaf in view.leaves)
        changed = {**view.changed, **dict.fromkeys(outcomes, self.clock())}
        return replace(view, leaves=tuple(leaf for leaf in leaves if leaf is not None), changed=changed)

    def _taken(self, step: Step) -> Leaf | None:
        """The leaf as it is after a step, as far as is known; None where nothing more is to be done for it."""
        try:
            match step:
                case Action():
                    return self._claim(step)
                case Removal():
                    self._remove(step)
                    return None
                case LetRunOn():
                    return self._let_run_on(step)
                case BringInLine() | PutBack():
                    claim = entries.carry_out(self.catalogue, step, self.clock())
                    # The leaf was read whole for this, as no view has it: the next turn looks again.
                    self._left_alone.add(key_of(step.leaf))
                    return self._claim(claim) if claim else step.leaf
        except Refused as why:
            self._note_refusal(step, why)
            return self._as_it_was(step.leaf)

    def _claim(self, action: Action) -> Leaf | None:
        outcome = self.catalogue.claim(action.leaf, action.mode, _report(action))
        self.metrics.claims.labels(outcome.value).inc()
        if outcome is Claim.LOST:
            # Somebody else moved the leaf; their write wakes us.
            self.log.debug("claim lost", leaf=action.leaf.dn, mode=action.mode.value)
            return self._as_it_was(action.leaf)
        self.log.info(action.sentence)
        if action.return_value and action.leaf.group:
            self._given_up.append(action.outcome)
        if action.outcome.is_good_backup:
            self.ended_well.add(action.leaf.machine)
        return None if is_over(action.outcome) else action.outcome

    def _remove(self, removal: Removal) -> None:
        if self.catalogue.remove(removal.leaf):  # else somebody has asked for it anew
            self.log.info(removal.sentence)

    def _let_run_on(self, step: LetRunOn) -> Leaf | None:
        outcome = step.outcome
        if self.catalogue.note(step.leaf, {Attribute.START_WAIT: (str(outcome.start_wait),)}) is Claim.LOST:
            return self._as_it_was(step.leaf)
        self.log.info(step.sentence)
        return outcome

    def _as_it_was(self, leaf: Leaf) -> Leaf:
        """Others of its group still go by it; the leaf itself is left alone until it is read again."""
        self._left_alone.add(key_of(leaf))
        return leaf

    def _note_refusal(self, step: Step, why: Refused) -> None:
        sentence = f"{step.sentence}: the directory refuses: {why.sentence}"
        self.refused[key_of(step.leaf)] = (step.leaf, sentence)
        self.log.error(sentence, return_value=int(why.code))

    def _nodes_if_needed(self, view: View) -> dict[str, str]:
        """Where the machines are, read only when something asked for has been standing for long."""
        latest = self.clock() - self.bounds.take_up
        asked_for = modes(kind=Kind.IMPERATIVE)
        if not any(leaf.mode in asked_for and asked_since(leaf, view) <= latest for leaf in view.leaves):
            return {}
        wanted = (Attribute.MACHINE, Attribute.NODE)
        machines = Equals("objectClass", ObjectClass.MACHINE)
        entries = self.catalogue.store.search(self.catalogue.tree.machines, machines, Scope.CHILDREN, wanted)
        return {(entry.first(wanted[0]) or "").casefold(): entry.first(wanted[1]) or "" for entry in entries}

    def _deadlines(self, view: View) -> dict[str, timedelta]:
        """Those of machines whose leaf has been standing for as long as an agent has to take work up."""
        latest = self.clock() - self.bounds.take_up
        standing = [leaf for leaf in view.leaves if leaf.is_in_flight and asked_since(leaf, view) <= latest]
        return {key_of(leaf)[0]: timedelta(seconds=self._deadline(leaf.machine)) for leaf in standing}

    def _deadline(self, name: str) -> int:
        """By the plan; read again after some minutes, as many leaves may stand."""
        known = self._known_deadlines.get(name)
        if known is None or self.elapsed() - known[1] > _PLAN_IS_FRESH:
            machine = self.catalogue.machine_entry(name)
            known = deadline_of(name, self.catalogue.plan_sources(machine) if machine else ()), self.elapsed()
            self._known_deadlines[name] = known
        return known[0]

    def _changed_as_seen_here(self, view: View) -> dict[str, datetime]:
        """When each leaf was last written, by our own clock and never before we were there to see it.

        The directory's clock is not ours, ours may be set, and nobody moved a leaf while we were away: taken by the
        times of the directory, an agent would be given up before it had its time.
        """
        now, elapsed = self.clock(), self.elapsed()
        versions = {leaf.dn: (leaf, view.changed[leaf.dn]) for leaf in view.leaves if leaf.dn in view.changed}
        known = self._seen
        self._seen = {
            dn: known[dn] if dn in known and known[dn][0] == version else (version, elapsed)
            for dn, version in versions.items()
        }
        return {dn: now - timedelta(seconds=elapsed - since) for dn, (_, since) in self._seen.items()}

    def _begun_as_seen_here(self, view: View) -> dict[str, datetime]:
        """When each run began, by our own clock: when a leaf of its timestamp was first seen here."""
        now, elapsed = self.clock(), self.elapsed()
        known = self._first_seen
        self._first_seen = {leaf.timestamp: known.get(leaf.timestamp, elapsed) for leaf in view.leaves}
        return {timestamp: now - timedelta(seconds=elapsed - since) for timestamp, since in self._first_seen.items()}

    def _stays_refused(self, leaf: Leaf) -> bool:
        known = self.refused.get(key_of(leaf))
        return known is not None and known[0] == leaf


def _report(action: Action) -> Report:
    extra: dict[str, tuple[str, ...]] = {name.value: () for name in action.removed}
    if action.attempts is not None:
        extra[Attribute.ATTEMPTS.value] = (str(action.attempts),) if action.attempts else ()
    if action.group:
        extra[Attribute.GROUP.value] = (action.group,)
    if action.start_wait is not None:
        extra[Attribute.START_WAIT.value] = (str(action.start_wait),)
    if action.bandwidth is not None:
        extra[Attribute.BANDWIDTH.value] = (str(action.bandwidth),) if action.bandwidth else ()
    return Report(action.state, action.return_value, action.message, extra)


def _leaves(catalogue: Catalogue) -> Iterator[tuple[Leaf, Entry]]:
    for entry in catalogue.store.search(catalogue.tree.machines, NOT_ENDED, attributes=_READ):
        leaf = leaf_of(entry)
        if leaf is not None:
            yield leaf, entry


def _time_of_change(entry: Entry) -> datetime | None:
    found = _GENERALIZED_TIME.match(entry.first(_CHANGED) or "")
    return datetime.strptime(found.group(1), "%Y%m%d%H%M%S").replace(tzinfo=UTC) if found else None
