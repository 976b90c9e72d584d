"""A backup leaf as read from the directory, and the questions its readers ask of it."""

from dataclasses import dataclass
from datetime import date, datetime

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.modes import ROWS, Circle, Kind, Mode
from vmkeep.contract.timestamps import from_timestamp

NOW = "0"  # sstProvisioningState beside an imperative: start
_MOST = 999_999_999  # MiB/s, as in a plan: what an admin typed must not be too long for libvirt
NOT_PUT_BACK = "could not be put back"  # in a message: the failure left something undone, and a person is needed


@dataclass(frozen=True)
class Wishes:
    """What an admin asks of a restore or a deletion beyond its mode; attributes of the leaf.

    `disks` are targets to bring back alone (none: the whole machine). `original` is the name of the machine whose set
    is restored under this leaf's machine. `without_state` None: as the plan says.
    """

    disks: tuple[str, ...] = ()
    original: str = ""
    isolated: bool = False
    keep_mac: bool = False
    keep_old: bool = False
    without_state: bool | None = None
    delete_last: bool = False


@dataclass(frozen=True)
class Leaf:
    """One backup (or restore) of one machine. Times UTC, sizes in bytes, durations in seconds.

    `execution_times` are the raw values (`snapshot: 5.108`); `raw_mode` is kept beside `mode` because a claim must name
    the value exactly as it stands. `conflicts` is JSON; `entry` and `entry_before` are LDIF, of the machine's entry as
    it is to be and as it was before a restore. `instant` is that of its snapshot, by its node's clock; `group…` is
    what the controller says of the machines it was to be saved with; `start_wait` is for how many seconds it may stand
    still so that others of them run before it (0: it may run on; None: there is no order), `started` when it ran on.
    `node` is at work on it, `set_node` laid its set into retain. `hold` is somebody's word that it stays
    (`retention.read_hold`), `pruned` why the plan lets it go.
    `epoch` is that of the controller that wrote it last. `bandwidth` in MiB/s is what the controller gave its merge or
    retain, 0 for no limit.
    """

    dn: str
    machine: str
    timestamp: str
    raw_mode: str
    state: str
    execution_date: int = 0
    return_value: int = 0
    execution_times: tuple[str, ...] = ()
    message: str = ""
    attempts: int = 0
    bytes_done: int | None = None
    bytes_total: int | None = None
    percent: int | None = None
    consistency: str = ""
    size: int | None = None
    set_directory: str = ""
    manifest_digest: str = ""
    node: str = ""
    set_node: str = ""
    conflicts: str = ""
    entry: str = ""
    entry_before: str = ""
    wishes: Wishes = Wishes()
    hold: str = ""
    pruned: str = ""
    has_leaf_class: bool = False
    instant: str = ""
    group: str = ""
    group_spread: str = ""
    group_consistency: str = ""
    start_wait: int | None = None
    started: str = ""
    epoch: int | None = None
    bandwidth: int = 0

    @property
    def mode(self) -> Mode | None:
        """The mode, None where a foreign tool wrote one of its own."""
        return Mode.read(self.raw_mode)

    @property
    def planned(self) -> datetime:
        """The planned time that names the leaf."""
        return from_timestamp(self.timestamp)

    def is_asked(self, today: date) -> bool:
        """Whether an agent should take this leaf up now."""
        return self._is_kind(Kind.IMPERATIVE) and self.state == NOW and self._has_come(today)

    @property
    def is_at_work(self) -> bool:
        """Whether somebody claimed the leaf and has neither ended nor failed."""
        return self._is_kind(Kind.AT_WORK) and self.return_value == 0

    @property
    def is_failed(self) -> bool:
        """Whether the leaf stands still with a return value."""
        return self.return_value != 0 and not self._is_kind(Kind.IMPERATIVE)

    @property
    def is_good_backup(self) -> bool:
        """Finished and 0: the only success there is."""
        return self.mode is Mode.FINISHED and self.return_value == 0

    @property
    def was_put_back(self) -> bool:
        """Whether a failure left the machine and its entry as they were."""
        return NOT_PUT_BACK not in self.message

    @property
    def is_in_restore(self) -> bool:
        """Whether a restore of this leaf is still to end, one that failed included."""
        return self.mode is not None and ROWS[self.mode].circle is Circle.RESTORE

    @property
    def never_was_good(self) -> bool:
        """Whether there was no good backup, and a restore or a deletion was refused: nothing may make one of it.

        Where there is no manifest's digest there is no benefit of the doubt: one good backup too few does less harm
        than one too many.
        """
        refused = self.mode is Mode.UNRETAINING_SMALL_FILES and self.return_value == ReturnValue.WRONG_STATE_INFORMATION
        tidied = self.mode is Mode.DELETING and bool(self.pruned)
        return (refused or tidied) and not self.manifest_digest

    @property
    def is_in_flight(self) -> bool:
        """Whether something is still to come without a person's doing."""
        return self.mode is not None and self.mode not in (Mode.FINISHED, Mode.DELETED) and not self.is_failed

    def is_left_to(self, node: str) -> bool:
        """Whether a node may go on with work on it: it began that, or nothing says who did."""
        return self.node.casefold() in ("", node.casefold())

    def slowed(self, bandwidth: int) -> int:
        """The lower of a plan's bandwidth and the one given here, for merge and retain; MiB/s, 0: no limit."""
        given = self.bandwidth if self.mode in (Mode.MERGING, Mode.RETAINING) else 0
        return min((limit for limit in (bandwidth, min(given, _MOST)) if limit), default=0)

    def duration(self, what: str) -> float | None:
        """Seconds recorded under a name in sstProvisioningExecutionTime."""
        for value in self.execution_times:
            name, _, seconds = value.partition(":")
            if name.strip() == what:
                return _to_seconds(seconds)
        return None

    def _is_kind(self, kind: Kind) -> bool:
        return self.mode is not None and ROWS[self.mode].kind is kind

    def _has_come(self, today: date) -> bool:
        return self.execution_date == 0 or self.execution_date <= int(today.strftime("%Y%m%d"))


def with_duration(values: tuple[str, ...], what: str, seconds: float) -> tuple[str, ...]:
    """Execution times with one more or one replaced: `snapshot: 5.108`."""
    kept = tuple(value for value in values if value.partition(":")[0].strip() != what)
    return (*kept, f"{what}: {seconds:.3f}")


def _to_seconds(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
