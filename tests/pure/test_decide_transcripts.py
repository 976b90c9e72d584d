"""What the controller decides, as transcripts: scenes of leaves and times in, the claims out.

A file holds commands and, below each `decide`, the answer up to an empty line. Commands:

    # a remark
    bounds <deadline> <take-up> <attempts> <back-off>     seconds; otherwise 600 300 3 60
    leaf <machine> <timestamp> <mode> <state> [rv=N] [attempts=N] [message=a_text] [date=YYYYMMDD] [changed=TIME]
         [group=a_name] [conflicts=x] [entry=x] [before=x] [disk=vda] [from=machine] [keep-old=x] [digest=x]
         [hold=a_text] [pruned=a_text] [wait=N] [started=x] [bandwidth=N]
    node <machine> <node>                                 where a machine is
    deadline <machine> <seconds>                          of its plan
    gone <machine>                                        its leaves are no longer there
    complete <timestamp>                                  the leaves of that run are all there
    only <machine> …                                      act on these alone
    place <machine> <node> <root> [group=a_name] [stop=N] [start=N] [wait=N]   what its plan says; nothing: all is taken
    budget <mode that asks> [overall=N] [per_node=N] [per_root=N] [bandwidth_overall=N] [bandwidth_per_node=N] …
    down <node> …                                         nodes that give no sign of life; none: all do
    decide <time>                                         answers the claims, and when to look again
    apply <time>                                          as decide; the claims are won, the removals made
    keep <rule=number> …                                  what the plan keeps; otherwise last=1
    elsewhere <timestamp> …                               other machines are made from these sets
    judge <time>                                          answers which leaves go, and why the others stay

Times are HH:MM:SS of 2026-01-01, or whole timestamps.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from controller.actions import Action, LetRunOn, Removal, Step
from controller.allotting import Room, allot
from controller.bandwidths import Bandwidths
from controller.budgets import Budget, Piece
from controller.decide import Bounds, View, decide, next_look
from controller.places import Place
from vmkeep.contract.grouping import Grouping
from vmkeep.contract.leaf import Leaf, Wishes
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Tree
from vmkeep.contract.pruning import judge_leaves
from vmkeep.contract.retention import Policy, read_policy
from vmkeep.contract.timestamps import from_timestamp, to_timestamp

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
TREE = Tree("dc=example,dc=org")


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_controller_decides_as_the_transcript_has_it(path: Path, rewrite: bool) -> None:
    written = path.read_text()
    answered = "\n".join(Scene().play(written)).rstrip("\n") + "\n"
    if rewrite:
        path.write_text(answered)
    assert answered == written


class Scene:
    """What is there, and what was asked of it."""

    def __init__(self) -> None:
        self._bounds = _bounds("600", "300", "3", "60")
        self._view = View(())
        self._room = Room({}, {})
        self._policy = Policy()
        self._elsewhere: frozenset[str] = frozenset()

    def play(self, text: str) -> list[str]:
        """The commands again, with fresh answers."""
        lines: list[str] = []
        answering = False
        for line in text.splitlines():
            if answering and line.strip():
                continue
            if answering:
                answering = False
            lines.append(line)
            command, _, rest = line.partition(" ")
            if command in ("decide", "apply"):
                answering = True
                lines += self._decide(command, _time(rest.strip()))
            elif command == "judge":
                answering = True
                lines += self._judge(_time(rest.strip()))
            elif line.strip() and command != "#":
                self._set(command, rest.split())
        return lines

    def _set(self, command: str, words: list[str]) -> None:
        match command:
            case "bounds":
                self._bounds = _bounds(*words)
            case "leaf":
                self._put(*words)
            case "gone":
                kept = tuple(leaf for leaf in self._view.leaves if leaf.machine not in words)
                self._view = replace(self._view, leaves=kept)
            case "node":
                self._view = replace(self._view, nodes={**self._view.nodes, words[0]: words[1]})
            case "deadline":
                deadlines = {**self._view.deadlines, words[0]: timedelta(seconds=int(words[1]))}
                self._view = replace(self._view, deadlines=deadlines)
            case "complete":
                self._view = replace(self._view, complete=frozenset(words))
            case "place" | "budget" | "down":
                self._room = _with_room(self._room, command, words)
            case "only":
                self._view = replace(self._view, only=frozenset(words) or None)
            case "keep" | "elsewhere":
                self._set_of_pruning(command, words)
            case _:
                raise AssertionError(f"no such command: {command}")

    def _set_of_pruning(self, command: str, words: list[str]) -> None:
        if command == "keep":
            self._policy = read_policy(" ".join(words))
        else:
            self._elsewhere = frozenset(words)

    def _put(self, machine: str, timestamp: str, mode: str, state: str, *more: str) -> None:
        values = dict(word.split("=", 1) for word in more)
        leaf = Leaf(
            dn=TREE.leaf(machine, timestamp),
            machine=machine,
            timestamp=timestamp,
            raw_mode=mode,
            state=state if state == "0" or not state[:1].isdigit() else to_timestamp(_time(state)),
            return_value=int(values.get("rv", 0)),
            attempts=int(values.get("attempts", 0)),
            message=values.get("message", "").replace("_", " "),
            execution_date=int(values.get("date", 0)),
            group=values.get("group", "").replace("_", " "),
            conflicts=values.get("conflicts", ""),
            entry=values.get("entry", ""),
            entry_before=values.get("before", ""),
            wishes=Wishes(
                disks=tuple(filter(None, [values.get("disk")])),
                original=values.get("from", ""),
                keep_old="keep-old" in values,
            ),
            manifest_digest=values.get("digest", ""),
            hold=values.get("hold", "").replace("_", " "),
            pruned=values.get("pruned", "").replace("_", " "),
            start_wait=int(values["wait"]) if "wait" in values else None,
            started=values.get("started", ""),
            bandwidth=int(values.get("bandwidth", 0)),
        )
        others = tuple(one for one in self._view.leaves if one.dn != leaf.dn)
        changed = {dn: moment for dn, moment in self._view.changed.items() if dn != leaf.dn}
        if "changed" in values:
            changed[leaf.dn] = _time(values["changed"])
        self._view = replace(self._view, leaves=(*others, leaf), changed=changed)

    def _judge(self, now: datetime) -> list[str]:
        judged = judge_leaves(self._view.leaves, self._elsewhere, self._policy, now, ZoneInfo("UTC"))
        return [f"  {one.leaf.timestamp} {'goes' if one.goes else 'stays'}: {one.why}" for one in judged]

    def _decide(self, command: str, now: datetime) -> list[str]:
        allotted = allot(decide(self._view, now, self._bounds), self._view.leaves, self._view.changed, self._room)
        steps = allotted.steps
        lines = [_told(step) for step in steps]
        lines += [f"  {machine} waits: {why}" for (machine, _), why in sorted(allotted.waiting.items())]
        due = next_look(self._view, now, self._bounds)
        if due is not None:
            lines.append(f"  look again at {to_timestamp(due)}")
        if command == "apply":
            outcomes = {step.leaf.dn: _afterwards(step) for step in steps}
            leaves = (outcomes.get(leaf.dn, leaf) for leaf in self._view.leaves)
            self._view = replace(self._view, leaves=tuple(leaf for leaf in leaves if leaf))
        return lines or ["  nothing"]


def _afterwards(step: Step) -> Leaf | None:
    if isinstance(step, Removal):
        return None
    return step.outcome if isinstance(step, Action | LetRunOn) else step.leaf


def _told(action: Step) -> str:
    if not isinstance(action, Action):
        return f"  {action.sentence}"
    parts = [f"  {action.leaf.machine}: {action.leaf.raw_mode} → {action.mode}", f"State {action.state}"]
    parts.append(f"ReturnValue {int(action.return_value)}")
    if action.attempts is not None:
        parts.append(f"attempts {action.attempts}")
    if action.message is not None:
        parts.append(f"message {action.message!r}")
    if action.group:
        parts.append(f"group {action.group!r}")
    if action.start_wait is not None:
        parts.append(f"may wait {action.start_wait} s to start")
    if action.bandwidth is not None:
        parts.append(f"bandwidth {action.bandwidth}")
    if action.removed:
        parts.append(f"without {' '.join(action.removed)}")
    return ", ".join(parts)


def _with_room(room: Room, command: str, words: list[str]) -> Room:
    match command:
        case "place":
            return replace(room, places={**room.places, words[0]: _place(*words)})
        case "budget":
            limits = {name: int(number) for name, number in (word.split("=") for word in words[1:])}
            totals = {name.removeprefix("bandwidth_"): limits.pop(name) for name in [*limits] if "bandwidth_" in name}
            budget = Budget(**limits, bandwidths=Bandwidths(**totals))
            return replace(room, budgets={**room.budgets, Mode(words[0]): budget})
    return replace(room, down=frozenset(words))


def _place(machine: str, node: str, root: str, *more: str) -> Place:
    values = dict(word.split("=", 1) for word in more)
    stop, start = (int(values[name]) if name in values else None for name in ("stop", "start"))
    wait, group = int(values.get("wait", 60)), values.get("group", "").replace("_", " ")
    return Place(Piece(machine, node, root), Grouping(group, stop, start, wait))


def _bounds(deadline: str, take_up: str, attempts: str, back_off: str) -> Bounds:
    deadline_, take_up_, back_off_ = (timedelta(seconds=float(text)) for text in (deadline, take_up, back_off))
    return Bounds(deadline_, take_up_, int(attempts), back_off_)


def _time(text: str) -> datetime:
    if "T" in text:
        return from_timestamp(text)
    return datetime.strptime(f"2026-01-01 {text}", "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
