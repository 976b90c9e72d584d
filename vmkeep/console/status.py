"""How the backups of all machines stand: pure, from machines and leaves as read. Shown as a table or as JSON."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from zoneinfo import ZoneInfo

from vmkeep.contract.codes import meaning_of
from vmkeep.contract.errors import Refused
from vmkeep.contract.grouping import is_inconsistent, value_of, window_end
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import is_excluded
from vmkeep.contract.promises import Lack, LackKind, has_good_set, lack
from vmkeep.contract.pruning import is_being_deleted
from vmkeep.contract.timestamps import from_timestamp, is_timestamp, to_timestamp
from vmkeep.contract.timetable import timetable
from vmkeep.directory.survey import Surveyed

_UTC = ZoneInfo("UTC")
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
_HAS_A_BANDWIDTH = (Mode.MERGE, Mode.MERGING, Mode.RETAIN, Mode.RETAINING)
_BEFORE_SNAPSHOTTED = (Mode.INITIALIZE, Mode.INITIALIZED, Mode.SNAPSHOT, Mode.SNAPSHOTTING)


class Standing(StrEnum):
    """One word for a machine: what an admin has to know first."""

    OK = "ok"  # the newest leaf is a good backup
    RUNNING = "running"  # something is in flight
    WAITS = "waits"  # a restore waits for its admin's decision
    FAILED = "failed"  # the newest leaf that ended failed
    NEVER = "never"  # no good backup, and nothing failed
    LEFT_OUT = "left out"


@dataclass(frozen=True)
class Status:
    """One machine. Times UTC as in the directory, sizes in bytes, durations in seconds; None where unknown."""

    machine: str
    node: str | None
    standing: Standing
    last_success: str | None = None
    age: float | None = None
    size: int | None = None
    downtime: float | None = None
    running: Leaf | None = None
    failed: Leaf | None = None
    trouble: str = ""
    group: str = ""
    group_spread: str = ""
    group_consistency: str = ""
    is_late: bool = False
    lack: Lack | None = None

    @property
    def broken_promise(self) -> str:
        """What the plan promises and is not so; empty where all is well, or nothing is promised."""
        return self.lack.sentence if self.lack and self.lack.kind is LackKind.BROKEN else ""


def statuses(
    surveyed: Iterable[Surveyed], leaves: Iterable[Leaf], now: datetime, zone: ZoneInfo = _UTC
) -> list[Status]:
    """Every machine, by name. `zone` is that of the cron fields."""
    by_machine: dict[str, list[Leaf]] = {}
    for leaf in leaves:
        by_machine.setdefault(leaf.machine.casefold(), []).append(leaf)
    found = (status_of(one, by_machine.get(one.machine.name.casefold(), []), now, zone) for one in surveyed)
    return sorted(found, key=lambda status: status.machine)


def status_of(surveyed: Surveyed, leaves: Sequence[Leaf], now: datetime, zone: ZoneInfo = _UTC) -> Status:
    """One machine, from its leaves."""
    ordered = sorted(leaves, key=lambda leaf: leaf.timestamp)
    good = next((leaf for leaf in reversed(ordered) if has_good_set(leaf)), None)
    # That an old backup is being deleted says nothing of how the machine stands.
    under_way = [leaf for leaf in reversed(ordered) if leaf.is_in_flight and not is_being_deleted(leaf)]
    running = next(iter(under_way), None)
    failed = next((leaf for leaf in reversed(ordered) if leaf.is_failed and _is_told(leaf, good)), None)
    left_out, trouble = _exclusion(surveyed)
    return Status(
        machine=surveyed.machine.name,
        node=surveyed.machine.node,
        standing=_standing(left_out, running, failed, good),
        last_success=good.timestamp if good else None,
        age=(now - good.planned).total_seconds() if good else None,
        size=good.size if good else None,
        downtime=good.duration("downtime") if good else None,
        running=running,
        failed=failed,
        trouble=trouble,
        group=good.group if good else "",
        group_spread=good.group_spread if good else "",
        group_consistency=good.group_consistency if good else "",
        is_late=running is not None and _is_late(surveyed, running, now, zone),
        lack=lack(surveyed.machine, surveyed.sources, leaves, now),
    )


def to_json(status: Status) -> dict[str, object]:
    """The documented form; keys are only ever added."""
    return {
        "machine": status.machine,
        "node": status.node,
        "standing": status.standing.value,
        "last_success": status.last_success,
        "age_seconds": status.age,
        "size_bytes": status.size,
        "downtime_seconds": status.downtime,
        "running": _running_json(status.running),
        "failed": _failed_json(status.failed),
        "trouble": status.trouble or None,
        "late": status.is_late,
        "group": status.group or None,
        "group_consistency": status.group_consistency or None,
        "group_spread_seconds": float(status.group_spread) if _SECONDS.fullmatch(status.group_spread) else None,
        "broken_promise": status.broken_promise or None,
        "not_covered": status.lack.sentence if status.lack and not status.broken_promise else None,
    }


def of_its_group(status: Status) -> str:
    """What the last success is not, "" where it is one instant with its group or has none."""
    if not is_inconsistent(status.group_consistency):
        return ""
    return f"{status.last_success} is not one instant with group {status.group}: {status.group_consistency}"


def why_failed(leaf: Leaf) -> str:
    """A failed leaf in one line."""
    said = leaf.message or meaning_of(leaf.return_value)
    what = f"restore of {leaf.timestamp}" if leaf.is_in_restore else leaf.timestamp
    return f"{what} {leaf.raw_mode}: {leaf.return_value} {said}"


def what_runs(leaf: Leaf) -> str:
    """A leaf in flight in one line."""
    if leaf.mode is Mode.UNRETAINED_SMALL_FILES:
        return f"restore of {leaf.timestamp} waits for a decision: vmkeep restore {leaf.machine}, or vmkeep abort"
    percent = "" if leaf.percent is None or not leaf.is_at_work else f" {leaf.percent} %"
    limit = f", at most {leaf.bandwidth} MiB/s" if leaf.bandwidth and leaf.mode in _HAS_A_BANDWIDTH else ""
    at = f"{leaf.raw_mode}{percent}{limit}"
    return f"restore of {leaf.timestamp}: {at}" if leaf.is_in_restore else at


def failed_at(leaf: Leaf) -> datetime:
    """When a leaf failed; its planned time where State does not say."""
    return from_timestamp(leaf.state) if is_timestamp(leaf.state) else leaf.planned


def _is_told(leaf: Leaf, good: Leaf | None) -> bool:
    """A failed restore waits for a person; a failed backup that a newer good one has made up for is history."""
    return leaf.is_in_restore or good is None or leaf.timestamp > good.timestamp


def _is_late(surveyed: Surveyed, leaf: Leaf, now: datetime, zone: ZoneInfo) -> bool:
    """Whether its snapshot is still to be made although its window is over."""
    if leaf.mode not in _BEFORE_SNAPSHOTTED:
        return False
    schedule = timetable(surveyed.machine, surveyed.sources).schedule
    end = window_end(value_of(Attribute.WINDOW, surveyed.sources), schedule, zone, leaf.planned, now)
    return end is not None and now > end


def _exclusion(surveyed: Surveyed) -> tuple[bool, str]:
    try:
        return is_excluded(surveyed.machine.name, surveyed.sources), ""
    except Refused as why:
        return False, why.sentence


def _standing(left_out: bool, running: Leaf | None, failed: Leaf | None, good: Leaf | None) -> Standing:
    if running:
        return Standing.WAITS if running.mode is Mode.UNRETAINED_SMALL_FILES else Standing.RUNNING
    if failed and failed.is_in_restore:
        return Standing.FAILED
    if left_out:
        return Standing.LEFT_OUT
    if failed:
        return Standing.FAILED
    return Standing.OK if good else Standing.NEVER


def _running_json(leaf: Leaf | None) -> dict[str, object] | None:
    if leaf is None:
        return None
    return {
        "timestamp": leaf.timestamp,
        "mode": leaf.raw_mode,
        "percent": leaf.percent,
        "attempts": leaf.attempts,
        "bandwidth": leaf.bandwidth or None,
    }


def _failed_json(leaf: Leaf | None) -> dict[str, object] | None:
    if leaf is None:
        return None
    return {
        "timestamp": leaf.timestamp,
        "mode": leaf.raw_mode,
        "at": to_timestamp(failed_at(leaf)),
        "return_value": leaf.return_value,
        "meaning": meaning_of(leaf.return_value),
        "message": leaf.message or None,
    }
