"""What `vmkeep plan` shows: every start of the days to come, in order, and each machine that does not start."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given, settings

from tests.pure.schedules import nights, schedules
from tests.pure.slow_cron import SlowCron
from vmkeep.console.outlook import Absence, Outlook, Start, Window, lines, outlook, to_json
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.plan import Schedule
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.contract.timetable import Timetable, Why

ZURICH = ZoneInfo("Europe/Zurich")
SATURDAY = datetime(2026, 10, 24, 12, tzinfo=UTC)
NIGHTLY = Schedule("30", "2", "*", "*", "*", active=True)
YEARLY = Schedule("0", "0", "1", "1", "*", active=True)


def leaf(machine: str, timestamp: str, mode: str = "finished") -> Leaf:
    return Leaf("ou=x", machine, timestamp, mode, "0")


def shown(leaves: list[Leaf], *tables: Timetable, days: int = 2) -> Outlook:
    return outlook(tables, leaves, Window(SATURDAY, days, ZURICH))


def test_machines_of_one_slot_are_shown_together_and_in_the_order_of_time() -> None:
    done = [leaf("b", "20261024T003000Z"), leaf("a", "20261024T003000Z")]
    found = shown(done, Timetable("b", NIGHTLY), Timetable("a", NIGHTLY))
    assert lines(found) == [
        "Sun 2026-10-25 02:30 CEST  20261025T003000Z  a, b",
        "Mon 2026-10-26 02:30 CET  20261026T013000Z  a, b",
    ]


def test_what_was_missed_is_shown_first_as_started_at_once() -> None:
    found = shown([leaf("a", "20261020T003000Z")], Timetable("a", NIGHTLY), days=0)
    assert lines(found) == ["at once, missed at Sat 2026-10-24 02:30 CEST  20261024T003000Z  a"]


def test_a_machine_that_does_not_start_is_shown_with_the_reason() -> None:
    leaves = [leaf("busy", "20261023T003000Z", "merging"), leaf("rare", "20260101T000000Z")]
    found = shown(
        leaves,
        Timetable("busy", NIGHTLY),
        Timetable("rare", YEARLY),
        Timetable("bad", why=Why.REFUSED, sentence="bad: sstCronHour is '25' in ou=x: it is not a cron field"),
        days=0,
    )
    assert lines(found) == [
        "at once, missed at Sat 2026-10-24 02:30 CEST  20261024T003000Z  busy",
        "bad  refused: sstCronHour is '25' in ou=x: it is not a cron field",
        "busy  waits: 20261024T003000Z is due and waits for the leaf 20261023T003000Z, which is merging",
        "rare  later: its next time is Fri 2027-01-01 00:00 CET",
    ]


def test_of_many_machines_a_line_names_some_and_counts_the_rest() -> None:
    names = [f"m{number:03}" for number in range(100)]
    found = shown([], *(Timetable(name, NIGHTLY) for name in names), days=0)
    assert lines(found)[0].endswith("m000, m001, m002, m003, m004, m005, m006, m007 and 92 more")
    assert found.starts[0].machines == tuple(names)


def test_the_json_has_the_documented_shape() -> None:
    absence = Absence("out", "left out", "why")
    window = Window(SATURDAY, 1, ZURICH)
    start = Start(datetime(2026, 10, 25, 0, 30, tzinfo=UTC), ("a",))
    assert to_json(Outlook(window, (start,), (absence,))) == {
        "from": "20261024T120000Z",
        "until": "20261025T120000Z",
        "timezone": "Europe/Zurich",
        "starts": [
            {"slot": "20261025T003000Z", "local": "2026-10-25T02:30+02:00", "at_once": False, "machines": ["a"]},
        ],
        "absences": [{"machine": "out", "why": "left out", "sentence": "why"}],
    }


@settings(deadline=None, max_examples=25)
@given(schedules(), nights())
def test_every_slot_of_the_days_is_shown_once(schedule: Schedule, night: tuple[ZoneInfo, datetime]) -> None:
    zone, evening = night
    last = leaf("a", to_timestamp(evening))
    found = outlook([Timetable("a", schedule)], [last], Window(evening, 1, zone))
    expected = SlowCron(schedule, zone).slots(evening, evening + timedelta(days=1))
    assert [start.slot for start in found.starts] == expected
    assert bool(found.absences) == (not expected)
