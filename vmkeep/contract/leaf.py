"""A backup leaf as read from the directory, and the questions its readers ask of it."""

from dataclasses import dataclass
from datetime import date, datetime

from vmkeep.contract.modes import ROWS, Circle, Kind, Mode
from vmkeep.contract.timestamps import from_timestamp

NOW = "0"  # sstProvisioningState beside an imperative: start
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
    it is to be and as it was before a restore. `epoch` is that of the controller that wrote it last.
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
    conflicts: str = ""
    entry: str = ""
    entry_before: str = ""
    wishes: Wishes = Wishes()
    has_leaf_class: bool = False
    epoch: int | None = None

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
    def is_in_flight(self) -> bool:
        """Whether something is still to come without a person's doing."""
        return self.mode is not None and self.mode not in (Mode.FINISHED, Mode.DELETED) and not self.is_failed

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
