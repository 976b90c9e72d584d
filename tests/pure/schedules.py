"""Schedules, zones and nights for property tests."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from tests.pure.slow_cron import DAYS, MONTHS
from vmkeep.contract.plan import Schedule

# Each lies some hours before the clock is changed: by an hour, by half an hour, at midnight, in a month without summer.
NIGHTS = [
    ("Europe/Zurich", datetime(2026, 3, 28, 20, tzinfo=UTC)),
    ("Europe/Zurich", datetime(2026, 10, 24, 20, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 10, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 11, tzinfo=UTC)),
    ("America/Havana", datetime(2026, 3, 8, 1, tzinfo=UTC)),
    ("America/Havana", datetime(2026, 11, 1, 0, tzinfo=UTC)),
    ("Africa/Casablanca", datetime(2026, 2, 14, 22, tzinfo=UTC)),
    ("UTC", datetime(2026, 2, 28, 20, tzinfo=UTC)),
]


def nights() -> st.SearchStrategy[tuple[ZoneInfo, datetime]]:
    """A zone, and an instant some hours before its clock is changed."""
    return st.sampled_from(NIGHTS).map(lambda one: (ZoneInfo(one[0]), one[1]))


def schedules() -> st.SearchStrategy[Schedule]:
    """Cron fields of every form: lists, ranges, steps, stars, names."""
    return st.builds(
        Schedule,
        minute=_field(0, 59),
        hour=_field(0, 4) | _field(0, 23),
        day=st.just("*") | _field(1, 28),
        month=st.just("*") | st.sampled_from([",".join(MONTHS[:6]), "1-12", "feb-nov", "*/1"]),
        day_of_week=st.just("*") | _field(0, 7) | st.sampled_from(["mon-fri", "SAT,sun", ",".join(DAYS)]),
        active=st.just(True),
    )


@st.composite
def _term(draw: st.DrawFn, low: int, high: int) -> str:
    bottom = draw(st.integers(low, high))
    step = draw(st.sampled_from(["", "", f"/{draw(st.integers(1, 15))}"]))
    top = draw(st.none() | st.integers(bottom, high))
    # The library takes 5-5/2 for 5/2; nobody writes that.
    return f"{bottom}{step}" if top is None or top == bottom else f"{bottom}-{top}{step}"


def _field(low: int, high: int) -> st.SearchStrategy[str]:
    stars = st.sampled_from(["*", "*/2", "*/5", "*/7"])
    return stars | st.lists(_term(low, high), min_size=1, max_size=3).map(",".join)
