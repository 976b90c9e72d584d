"""The effective backup plan of a machine: attribute by attribute, machine → pool → cluster, each value with its origin.

Older tools let the first entry with the class win as a whole; here a machine that sets one attribute inherits the rest.
Reading is lenient about what is absent and strict about what is there: an unreadable value refuses that one machine.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from cronsim import CronSim, CronSimError

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.methods import Method
from vmkeep.contract.names import Attribute
from vmkeep.contract.retention import Policy, read_policy

Value = TypeVar("Value")
_FREEZE_SECONDS = 10
_SOME_DAY = datetime(2000, 1, 1, tzinfo=UTC)
_DEADLINE = 86_400  # a day


@dataclass(frozen=True)
class Source:
    """One entry a plan may come from: what it is ('machine', 'pool', 'cluster'), where it lies, what it holds."""

    origin: str
    dn: str
    attributes: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Schedule:
    """The five cron fields, in the cluster's local time."""

    minute: str
    hour: str
    day: str
    month: str
    day_of_week: str
    active: bool

    @property
    def expression(self) -> str:
        """The fields as one cron line."""
        return f"{self.minute} {self.hour} {self.day} {self.month} {self.day_of_week}"


@dataclass(frozen=True)
class Plan:
    """What to do with one machine. Paths absolute, bandwidths in MiB/s (0: unlimited), permissions as octal modes.

    `keep` as it stands, read by `policy_of`. `overlay_limit` in MiB, 0 for whatever can be written back again.
    `deadline`: seconds that a step may stand without a sign of life. `start_wait`: seconds that a saved machine may
    stand still so that others of its group run on before it, None for the usual. `window`: seconds after the planned
    time until a snapshot is to be made. `promise` as written: it is read by who watches over it, and refuses no backup.
    """

    backup_root: str
    retain_root: str
    ram_disk: str | None
    iterations: int
    keep: str | None
    bandwidth_merge: int
    image_owner: str | None
    image_group: str | None
    image_permission: int | None
    directory_owner: str | None
    directory_group: str | None
    directory_permission: int | None
    force_start: bool
    restore_without_state: bool
    method: Method
    overlay_limit: int
    bandwidth_copy: int
    freeze_seconds: int
    deadline: int
    promise: str
    schedule: Schedule | None
    group: str | None
    sequence_stop: str | None
    sequence_start: str | None
    start_wait: int | None
    window: int | None
    origins: Mapping[str, str]


def is_excluded(machine: str, sources: Sequence[Source]) -> bool:
    """Whether the plan leaves the machine out. Read on its own: a machine that is left out needs no readable plan."""
    return bool(_Reader(machine, sources).optional(Attribute.EXCLUDE, _boolean))


def schedule_of(machine: str, sources: Sequence[Source]) -> Schedule | None:
    """The plan's cron fields, read on their own: what else cannot be read is told on the leaf, by the agent."""
    return _schedule(_Reader(machine, sources))


def source_of(attribute: Attribute, sources: Sequence[Source]) -> Source | None:
    """The entry whose value of an attribute is in effect; None where no entry sets it."""
    wanted = attribute.casefold()
    return next(
        (one for one in sources if any(name.casefold() == wanted and one.attributes[name] for name in one.attributes)),
        None,
    )


def deadline_of(machine: str, sources: Sequence[Source]) -> int:
    """Seconds that a step of the machine may stand without a sign of life; what cannot be read is the usual day."""
    try:
        return _Reader(machine, sources).optional(Attribute.DEADLINE, _positive) or _DEADLINE
    except Refused:
        return _DEADLINE


def promise_of(machine: str, sources: Sequence[Source]) -> timedelta | None:
    """How old the newest good backup may become by the plan; None where it promises nothing. Refused: unreadable."""
    return _Reader(machine, sources).optional(Attribute.PROMISE, _span)


def policy_of(machine: str, sources: Sequence[Source]) -> Policy:
    """Which backups the plan keeps, read on its own: where it cannot be read none goes, and machines are backed up.

    vmkeepKeep wins over the number of iterations, whichever entry says it.
    """
    read = _Reader(machine, sources)
    policy = read.optional(Attribute.KEEP, _policy)
    return policy or Policy(last=read.optional(Attribute.ITERATIONS, _positive) or 1)


def resolve(machine: str, sources: Sequence[Source]) -> Plan:
    """The effective plan, from sources in order of precedence; Refused names machine, attribute and entry."""
    read = _Reader(machine, sources)
    return Plan(
        backup_root=read.required(Attribute.BACKUP_ROOT, _file_url),
        retain_root=read.required(Attribute.RETAIN_ROOT, _file_url),
        ram_disk=read.optional(Attribute.RAM_DISK, _file_url),
        iterations=read.optional(Attribute.ITERATIONS, _positive) or 1,
        keep=read.optional(Attribute.KEEP, str),
        bandwidth_merge=read.optional(Attribute.BANDWIDTH_MERGE, _natural) or 0,
        image_owner=read.optional(Attribute.IMAGE_OWNER, _account),
        image_group=read.optional(Attribute.IMAGE_GROUP, _account),
        image_permission=read.optional(Attribute.IMAGE_PERMISSION, _permission),
        directory_owner=read.optional(Attribute.DIRECTORY_OWNER, _account),
        directory_group=read.optional(Attribute.DIRECTORY_GROUP, _account),
        directory_permission=read.optional(Attribute.DIRECTORY_PERMISSION, _permission),
        force_start=bool(read.optional(Attribute.FORCE_START, _boolean)),
        restore_without_state=bool(read.optional(Attribute.RESTORE_WITHOUT_STATE, _boolean)),
        method=read.optional(Attribute.METHOD, _method) or Method.SAVE,
        overlay_limit=read.optional(Attribute.OVERLAY_LIMIT, _natural) or 0,
        bandwidth_copy=read.optional(Attribute.BANDWIDTH_COPY, _natural) or 0,
        freeze_seconds=read.optional(Attribute.FREEZE_SECONDS, _positive) or _FREEZE_SECONDS,
        deadline=read.optional(Attribute.DEADLINE, _positive) or _DEADLINE,
        promise=read.optional(Attribute.PROMISE, str) or "",
        schedule=_schedule(read),
        group=read.optional(Attribute.GROUP, str),
        sequence_stop=read.optional(Attribute.SEQUENCE_STOP, str),
        sequence_start=read.optional(Attribute.SEQUENCE_START, str),
        start_wait=read.optional(Attribute.START_WAIT, _natural),
        window=read.optional(Attribute.WINDOW, _positive),
        origins=read.finish(),
    )


class _Reader:
    """Looks values up through the sources and remembers where each came from."""

    def __init__(self, machine: str, sources: Sequence[Source]) -> None:
        self._machine = machine
        self._sources = [
            (source, {name.casefold(): values for name, values in source.attributes.items()}) for source in sources
        ]
        self._origins: dict[str, str] = {}

    def optional(self, attribute: Attribute, convert: Callable[[str], Value]) -> Value | None:
        for source, values in self._sources:
            found = values.get(attribute.casefold())
            if found:
                self._origins[attribute] = source.origin
                return self._converted(attribute, found, source, convert)
        return None

    def required(self, attribute: Attribute, convert: Callable[[str], Value]) -> Value:
        value = self.optional(attribute, convert)
        if value is None:
            looked = ", ".join(source.dn for source, _ in self._sources) or "no entry at all"
            raise Refused(
                ReturnValue.CANNOT_FIND_CONFIGURATION,
                f"{self._machine}: no plan sets {attribute}; looked in {looked}; set it there",
            )
        return value

    def refuse_dates_that_never_come(self, schedule: Schedule) -> None:
        """Each field may be one, and together they may ask for 30 February."""
        try:
            next(CronSim(schedule.expression, _SOME_DAY))
        except (CronSimError, StopIteration):
            raise Refused(
                ReturnValue.CONFIGURATION_UNREADABLE,
                f"{self._machine}: no date fits {Attribute.CRON_DAY} {schedule.day}, {Attribute.CRON_MONTH} "
                f"{schedule.month} and {Attribute.CRON_DAY_OF_WEEK} {schedule.day_of_week}; correct one of them",
            ) from None

    def finish(self) -> Mapping[str, str]:
        return dict(self._origins)

    def _converted(
        self, attribute: Attribute, found: Sequence[str], source: Source, convert: Callable[[str], Value]
    ) -> Value:
        # Cron fields may be multi-valued: several values mean a list.
        text = ",".join(found)
        try:
            return convert(text)
        except _Unreadable as why:
            raise Refused(why.code, f"{self._machine}: {attribute} is {text!r} in {source.dn}: {why}") from None


class _Unreadable(Exception):  # noqa: N818 - carried to the Refused that names the attribute
    def __init__(self, sentence: str, code: ReturnValue = ReturnValue.UNSUPPORTED_PARAMETER) -> None:
        super().__init__(sentence)
        self.code = code


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_SPAN = re.compile(r"([0-9]{1,9}) ?([smhdw]?)", re.IGNORECASE)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?")


def _file_url(text: str) -> str:
    scheme = _SCHEME.match(text)
    if scheme and scheme.group(1).casefold() != "file":
        raise _Unreadable(f"only file:/// is supported, not {scheme.group(1)}://", ReturnValue.UNSUPPORTED_PROTOCOL)
    if not text.casefold().startswith("file:///"):
        raise _Unreadable("it must be file:/// and an absolute path", ReturnValue.PATH_NOT_ALLOWED)
    return _canonical(text[len("file://") :])


def _canonical(path: str) -> str:
    trimmed = path.rstrip("/") if path.strip("/") else path
    parts = trimmed.split("/")[1:]
    if not all(parts) or any(part in (".", "..") for part in parts):
        raise _Unreadable("the path must be absolute, without '.', '..' or '//'", ReturnValue.PATH_NOT_ALLOWED)
    if any(ord(character) < 32 for character in path):
        raise _Unreadable("the path holds control characters", ReturnValue.PATH_NOT_ALLOWED)
    return trimmed


def _natural(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise _Unreadable("it must be a whole number, 0 or more")
    return int(text)


def _positive(text: str) -> int:
    number = _natural(text)
    if number < 1:
        raise _Unreadable("it must be 1 or more")
    return number


def _span(text: str) -> timedelta:
    found = _SPAN.fullmatch(text.strip())
    if not found or not int(found.group(1)):
        raise _Unreadable("it must be a number of seconds, or one with s, m, h, d or w, such as 26h")
    return timedelta(seconds=int(found.group(1)) * _UNITS[found.group(2).casefold()])


def _permission(text: str) -> int:
    # The syntax is INTEGER, so 0660 is stored as 660; the digits are octal.
    if not re.fullmatch(r"[0-7]{1,4}", text):
        raise _Unreadable("it must be an octal mode such as 660")
    return int(text, 8)


def _boolean(text: str) -> bool:
    if text.upper() not in ("TRUE", "FALSE"):
        raise _Unreadable("it must be TRUE or FALSE")
    return text.upper() == "TRUE"


def _method(text: str) -> Method:
    try:
        return Method(text.casefold())
    except ValueError:
        raise _Unreadable(f"it must be one of {', '.join(Method)}") from None


def _policy(text: str) -> Policy:
    try:
        return read_policy(text)
    except ValueError as why:
        raise _Unreadable(str(why), ReturnValue.CONFIGURATION_UNREADABLE) from None


def _account(text: str) -> str:
    if not _ACCOUNT.fullmatch(text):
        raise _Unreadable("it must be the name or number of an account")
    return text


def _schedule(read: _Reader) -> Schedule | None:
    minute = read.optional(Attribute.CRON_MINUTE, _cron_field(0))
    hour = read.optional(Attribute.CRON_HOUR, _cron_field(1))
    day = read.optional(Attribute.CRON_DAY, _cron_field(2))
    month = read.optional(Attribute.CRON_MONTH, _cron_field(3))
    day_of_week = read.optional(Attribute.CRON_DAY_OF_WEEK, _cron_field(4))
    active = read.optional(Attribute.CRON_ACTIVE, _boolean)
    if minute is None or hour is None:
        return None
    schedule = Schedule(minute, hour, day or "*", month or "*", day_of_week or "*", active=bool(active))
    read.refuse_dates_that_never_come(schedule)
    return schedule


def _cron_field(position: int) -> Callable[[str], str]:
    """A reader for one of the five fields: it must be a cron field where the others are stars."""

    def read(text: str) -> str:
        fields = ["*"] * 5
        fields[position] = text
        try:
            CronSim(" ".join(fields), _SOME_DAY)
        except CronSimError:
            raise _Unreadable("it is not a cron field", ReturnValue.CONFIGURATION_UNREADABLE) from None
        if not text or " " in text:
            raise _Unreadable("it is not a cron field", ReturnValue.CONFIGURATION_UNREADABLE)
        return text

    return read
