"""The effective plan of one machine as a list: attribute, value, origin. Shown by `vmkeep plan`. Pure."""

from dataclasses import dataclass

from vmkeep.contract.grouping import START_WAIT, place_in_order
from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import Plan

_DEFAULT = "default"
_NOT_SET = "-"


@dataclass(frozen=True)
class Setting:
    """One effective value. `origin` is machine, pool, cluster, or default where no plan sets it."""

    attribute: str
    value: str
    origin: str


def settings_of(plan: Plan) -> list[Setting]:
    """Every value of a plan, in the plan's own order."""
    return [
        Setting(attribute.value, value, plan.origins.get(attribute, _DEFAULT)) for attribute, value in _values(plan)
    ]


def _values(plan: Plan) -> list[tuple[Attribute, str]]:
    schedule = plan.schedule
    return [
        (Attribute.BACKUP_ROOT, plan.backup_root),
        (Attribute.RETAIN_ROOT, plan.retain_root),
        (Attribute.RAM_DISK, plan.ram_disk or _NOT_SET),
        (Attribute.ITERATIONS, str(plan.iterations)),
        (Attribute.KEEP, plan.keep or _NOT_SET),
        (Attribute.BANDWIDTH_MERGE, f"{plan.bandwidth_merge} MiB/s" if plan.bandwidth_merge else "unlimited"),
        (Attribute.IMAGE_OWNER, plan.image_owner or _NOT_SET),
        (Attribute.IMAGE_GROUP, plan.image_group or _NOT_SET),
        (Attribute.IMAGE_PERMISSION, _octal(plan.image_permission)),
        (Attribute.DIRECTORY_OWNER, plan.directory_owner or _NOT_SET),
        (Attribute.DIRECTORY_GROUP, plan.directory_group or _NOT_SET),
        (Attribute.DIRECTORY_PERMISSION, _octal(plan.directory_permission)),
        (Attribute.FORCE_START, str(plan.force_start).upper()),
        (Attribute.RESTORE_WITHOUT_STATE, str(plan.restore_without_state).upper()),
        (Attribute.METHOD, plan.method.value),
        (Attribute.OVERLAY_LIMIT, f"{plan.overlay_limit} MiB" if plan.overlay_limit else "what can be written back"),
        (Attribute.BANDWIDTH_COPY, f"{plan.bandwidth_copy} MiB/s" if plan.bandwidth_copy else "unlimited"),
        (Attribute.FREEZE_SECONDS, f"{plan.freeze_seconds} s"),
        (Attribute.DEADLINE, f"{plan.deadline} s"),
        (Attribute.GROUP, plan.group or _NOT_SET),
        (Attribute.SEQUENCE_STOP, _number(plan.sequence_stop)),
        (Attribute.SEQUENCE_START, _number(plan.sequence_start)),
        (Attribute.START_WAIT, f"{START_WAIT if plan.start_wait is None else plan.start_wait} s"),
        (Attribute.WINDOW, f"{plan.window} s" if plan.window else "until its next time"),
        (Attribute.PROMISE, plan.promise or _NOT_SET),
        (Attribute.CRON_MINUTE, schedule.minute if schedule else _NOT_SET),
        (Attribute.CRON_HOUR, schedule.hour if schedule else _NOT_SET),
        (Attribute.CRON_DAY, schedule.day if schedule else _NOT_SET),
        (Attribute.CRON_MONTH, schedule.month if schedule else _NOT_SET),
        (Attribute.CRON_DAY_OF_WEEK, schedule.day_of_week if schedule else _NOT_SET),
        (Attribute.CRON_ACTIVE, str(bool(schedule and schedule.active)).upper()),
    ]


def _number(text: str | None) -> str:
    if text is None:
        return _NOT_SET
    return text if place_in_order(text) is not None else f"{text} (no whole number: does not count)"


def _octal(mode: int | None) -> str:
    return _NOT_SET if mode is None else f"{mode:o}"
