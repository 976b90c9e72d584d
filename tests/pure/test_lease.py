"""Of any number of controllers one acts, whatever pauses, clocks and lost answers do; late writes come to nothing."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import CapturingLogger

from controller.lease import MARGIN, Lease, Leased, LeaseLost
from controller.serving import Guest, Serving, holder_of_this_process, mark_all
from tests.pure.played_controllers import TREE, Directory, Fate, Player
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.directory.catalogue import Catalogue, Report
from vmkeep.directory.lease import LeaseEntry, read_lease
from vmkeep.directory.memory import MemoryStore
from vmkeep.directory.port import Attributes, Claim, Entry
from vmkeep.service.metrics import Metrics

TTL = 10.0
PATIENCE = TTL * (1 + MARGIN)
SLOT = "20260101T030000Z"
LOG = structlog.get_logger()

# the play

RATES = st.sampled_from([0.9, 1.0, 1.1])
WAITS = st.sampled_from([0.0, 0.0, 0.0, 1.0, 3.0, 6.0, 8.0, 11.0, 13.0, 14.0, 40.0])
CALLS = st.sampled_from([1, 1, 2, 3, 4, 5, 7, 12, 25, 40])  # the last are whole tenures while the others stand still
FATES = st.sampled_from([Fate.ANSWERED] * 8 + [Fate.NOT_SENT, Fate.ANSWER_LOST])
STEPS = st.lists(st.tuples(st.integers(0, 2), CALLS, WAITS, FATES), min_size=10, max_size=60)


@contextmanager
def play(rates: list[float]) -> Iterator[tuple[Directory, list[Player]]]:
    directory = Directory()
    players = [Player(directory, number, rate, TTL) for number, rate in enumerate(rates)]
    try:
        yield directory, players
    finally:
        for player in players:
            player.end()
    for player in players:
        if player.bug:
            raise player.bug


def believers(players: list[Player]) -> list[str]:
    return [player.lease.holder for player in players if player.lease.is_held]


@settings(deadline=None, max_examples=150)
@given(st.lists(RATES, min_size=3, max_size=3), STEPS)
def test_never_two_believe_that_they_hold_the_lease_and_nothing_is_moved_by_who_lost_it(
    rates: list[float], steps: list[tuple[int, int, float, Fate]]
) -> None:
    with play(rates) as (directory, players):
        for number, calls, wait, fate in steps:
            for _ in range(calls):
                players[number].step(fate)
                fate = Fate.ANSWERED
                assert len(believers(players)) <= 1, believers(players)
                assert directory.faults == []
            directory.time += wait
            assert len(believers(players)) <= 1, believers(players)
            directory.agents_answer()


@settings(deadline=None, max_examples=15)
@given(st.lists(RATES, min_size=3, max_size=3), STEPS)
def test_when_all_is_well_again_one_acts_and_everything_is_finished(
    rates: list[float], steps: list[tuple[int, int, float, Fate]]
) -> None:
    with play(rates) as (directory, players):
        for number, calls, wait, fate in steps:
            for _ in range(calls):
                players[number].step(fate)
            directory.time += wait
        for _ in range(60):
            if is_well(directory, players):
                break
            directory.time += 2.0
            for player in players:
                for _ in range(12):
                    player.step()
            directory.agents_answer()
        assert is_well(directory, players), list(Catalogue(directory.memory, TREE).leaves())
        assert directory.faults == []


def is_well(directory: Directory, players: list[Player]) -> bool:
    """One acts, each machine has something to show and at most one leaf in flight, and what came too late is gone."""
    leaves = list(Catalogue(directory.memory, TREE).leaves())
    standing = [leaf.machine for leaf in leaves if leaf.mode is not Mode.FINISHED]
    finished = {leaf.machine for leaf in leaves if leaf.mode is Mode.FINISHED}
    late = {leaf.dn for leaf in leaves} & directory.late
    return len(believers(players)) == 1 and len(set(standing)) == len(standing) and len(finished) == 2 and not late


class Clock:
    """A clock to be turned by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class SlowStore(MemoryStore):
    """Each question and each answer is on its way for a while."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(TREE.suffix)
        self._clock = clock
        self.delays: Iterator[float] = itertools.repeat(0.0)

    def read(self, dn: str, attributes: Sequence[str] = ()) -> Entry | None:
        self._clock.time += next(self.delays)
        entry = super().read(dn, attributes)
        self._clock.time += next(self.delays)
        return entry

    def claim(self, *arguments: object, **more: object) -> Claim:
        self._clock.time += next(self.delays)
        claim = super().claim(*arguments, **more)  # type: ignore[arg-type]
        self._clock.time += next(self.delays)
        return claim


@settings(deadline=None, max_examples=400)
@given(
    st.lists(st.sampled_from([0.9, 1.1]), min_size=2, max_size=2),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 14)), min_size=5, max_size=30),
    st.lists(st.sampled_from([0.0, 0.0, 2.0, 4.0, 7.0]), min_size=1),
)
def test_however_long_questions_and_answers_take_no_two_believe_that_they_hold_it(
    rates: list[float], looks: list[tuple[int, int]], delays: list[float]
) -> None:
    clock = Clock()
    store = SlowStore(clock)
    Directory(memory=store)
    store.delays = itertools.cycle(delays)
    leases = [
        Lease(store, TREE, f"c{number}", TTL, clock=lambda rate=rate: rate * clock.time)  # type: ignore[misc]
        for number, rate in enumerate(rates)
    ]
    for number, seconds in looks:
        leases[number].attend()
        for _ in range(1 + 4 * seconds):
            assert sum(lease.is_held for lease in leases) <= 1
            clock.time += 0.25


# one by one


class FaultyStore(MemoryStore):
    """Loses the answer to the next claim: `before` it is done, or after."""

    def __init__(self) -> None:
        super().__init__(TREE.suffix)
        self.lose: Fate = Fate.ANSWERED

    def claim(self, *arguments: object, **more: object) -> Claim:
        lose, self.lose = self.lose, Fate.ANSWERED
        if lose is Fate.NOT_SENT:
            raise TryLater("not sent")
        claim = super().claim(*arguments, **more)  # type: ignore[arg-type]
        if lose is Fate.ANSWER_LOST:
            raise TryLater("answer lost")
        return claim


@pytest.fixture
def store() -> FaultyStore:
    store = FaultyStore()
    directory = Directory(memory=store)
    assert directory.memory is store
    return store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease_of(store: FaultyStore, clock: Clock) -> Callable[..., Lease]:
    def make(holder: str, seconds: float = TTL) -> Lease:
        return Lease(store, TREE, holder, seconds, clock)

    return make


def entry(store: MemoryStore) -> LeaseEntry:
    found = read_lease(store, TREE)
    assert found is not None
    return found


def test_a_single_controller_acts_at_once_and_makes_the_entry_where_it_is_missing(
    store: FaultyStore, lease_of: Callable[..., Lease]
) -> None:
    lease = lease_of("a")
    assert lease.attend()
    assert (entry(store).holder, entry(store).epoch, entry(store).seconds) == ("a", 1, TTL)
    assert entry(store).since


def test_nobody_takes_a_lease_before_its_version_stood_for_longer_than_it_holds(
    clock: Clock, lease_of: Callable[..., Lease]
) -> None:
    a, b = lease_of("a"), lease_of("b")
    assert a.attend()
    clock.time += 1
    assert not b.attend()
    clock.time += PATIENCE - 0.1
    assert not a.is_held
    assert not b.attend()
    clock.time += 0.1
    assert b.attend()
    assert (b.epoch, b.is_held, a.is_held) == (2, True, False)


def test_who_has_it_renews_it_in_time_and_keeps_it(clock: Clock, lease_of: Callable[..., Lease]) -> None:
    a, b = lease_of("a"), lease_of("b")
    for _ in range(30):
        assert a.attend()
        assert a.next_look <= TTL / 3 + 0.001
        assert not b.attend()
        clock.time += TTL / 3
    assert (a.epoch, b.other.holder) == (1, "a")


def test_a_controller_with_less_time_waits_for_the_time_of_the_other(
    clock: Clock, lease_of: Callable[..., Lease]
) -> None:
    a, b = lease_of("a", 100.0), lease_of("b", 1.0)
    assert a.attend()
    assert not b.attend()
    clock.time += 100.0
    assert not b.attend()
    clock.time += 25.0
    assert b.attend()


def test_a_lease_that_is_given_back_is_taken_at_once_by_a_later_epoch(
    store: FaultyStore, lease_of: Callable[..., Lease]
) -> None:
    a, b = lease_of("a"), lease_of("b")
    assert a.attend()
    assert not b.attend()
    assert a.give_back()
    assert not a.is_held
    assert not a.give_back()
    assert (entry(store).holder, entry(store).epoch) == ("", 1)
    assert b.attend()
    assert b.epoch == 2


def test_who_lost_it_gives_nothing_back(clock: Clock, lease_of: Callable[..., Lease], store: FaultyStore) -> None:
    a, b = lease_of("a"), lease_of("b")
    assert a.attend()
    b.attend()
    clock.time += PATIENCE
    assert b.attend()
    assert not a.give_back()
    assert entry(store).holder == "b"


def test_time_counts_from_before_the_question_not_from_the_answer(clock: Clock) -> None:
    slow = SlowStore(clock)
    Directory(memory=slow)
    slow.delays = itertools.cycle([0, 0, 0, 0, 0, TTL - 1])
    lease = Lease(slow, TREE, "a", TTL, clock)
    assert lease.attend()
    clock.time += 1
    assert not lease.is_held


def test_a_renewal_whose_answer_was_lost_goes_on_with_the_same_epoch(
    store: FaultyStore, clock: Clock, lease_of: Callable[..., Lease]
) -> None:
    a = lease_of("a")
    for lose in (Fate.ANSWER_LOST, Fate.NOT_SENT):
        assert a.attend()
        clock.time += TTL / 2
        store.lose = lose
        with pytest.raises(TryLater):
            a.attend()
        assert not a.is_held, "what is not known is not believed"
        assert a.attend()
        assert a.epoch == 1


def test_a_lease_whose_taking_was_not_answered_is_known_again(
    store: FaultyStore, lease_of: Callable[..., Lease]
) -> None:
    a = lease_of("a")
    store.lose = Fate.ANSWER_LOST
    with pytest.raises(TryLater):
        a.attend()
    assert a.attend()
    assert a.epoch == entry(store).epoch == 1


def test_who_was_stopped_for_long_may_write_nothing(clock: Clock, lease_of: Callable[..., Lease]) -> None:
    a = lease_of("a")
    leased = Leased(a.store, a)
    assert a.attend()
    clock.time += TTL
    for call in (
        lambda: leased.read(TREE.machines),
        lambda: list(leased.search(TREE.machines)),
        lambda: leased.add(TREE.machine("x"), {}),
        lambda: leased.claim(TREE.machines, {}, {"description": ("x",)}),
        lambda: leased.replace(TREE.machines, {"description": ("x",)}),
        lambda: leased.delete(TREE.machines),
    ):
        with pytest.raises(LeaseLost):
            call()
    assert a.attend(), "nobody came meanwhile"
    assert leased.read(TREE.machines)


def test_a_long_turn_renews_the_lease_on_its_way(clock: Clock, lease_of: Callable[..., Lease]) -> None:
    a, b = lease_of("a"), lease_of("b")
    leased = Leased(a.store, a)
    assert a.attend()
    for number in range(100):
        clock.time += TTL / 4
        assert leased.add(TREE.machine(f"m{number}"), {"objectClass": ("x",)})
        assert not b.attend()
    found = 0
    for _ in leased.search(TREE.machines):
        clock.time += TTL / 4
        found += 1
    assert found > 100


def test_an_admin_takes_the_lease_away_by_removing_its_holder(
    store: FaultyStore, clock: Clock, lease_of: Callable[..., Lease]
) -> None:
    a, b = lease_of("a"), lease_of("b")
    assert a.attend()
    store.replace(TREE.lease, {Attribute.LEASE_HOLDER: ()})
    assert b.attend()
    clock.time += TTL / 3
    with pytest.raises(LeaseLost):
        a.demand()
    assert not a.attend()
    assert a.other.holder == "b"


def test_a_lease_that_was_removed_begins_above_every_epoch_that_leaves_carry(
    store: FaultyStore, lease_of: Callable[..., Lease]
) -> None:
    catalogue = Catalogue(store, TREE, lambda: 41)
    assert catalogue.add_leaf("a", SLOT, SLOT)
    lease = lease_of("a")
    assert lease.attend()
    assert lease.epoch == 42


@pytest.mark.parametrize("values", [{"vmkeepEpoch": ("7",)}, {"vmkeepLeaseVersion": ("x",)}, {}])
def test_a_lease_made_or_edited_by_hand_is_taken(
    store: FaultyStore, lease_of: Callable[..., Lease], values: Attributes
) -> None:
    store.add(TREE.lease, {"objectClass": ("vmkeepLease",), **values})
    a, b = lease_of("a"), lease_of("b")
    assert a.attend()
    assert not b.attend()


# the fence


def added(store: MemoryStore, epoch: int | None, mode: Mode = Mode.INITIALIZE) -> Catalogue:
    catalogue = Catalogue(store, TREE, lambda: epoch)
    assert catalogue.add_leaf("a", SLOT, SLOT)
    store.claim(TREE.leaf("a", SLOT), {}, {Attribute.MODE: (mode,)})
    return catalogue


def test_a_late_claim_a_late_note_and_a_late_removal_come_to_nothing(store: FaultyStore) -> None:
    late = added(store, 3)
    leaf = late.leaf(TREE.leaf("a", SLOT))
    assert leaf is not None
    mark_all(Catalogue(store, TREE, lambda: 4), 4, LOG)
    assert late.claim(leaf, Mode.INITIALIZED, Report(SLOT)) is Claim.LOST
    assert late.note(leaf, {Attribute.MESSAGE: ("late",)}) is Claim.LOST
    assert not late.remove(leaf)
    assert not late.take_back(leaf.dn)
    marked = late.leaf(leaf.dn)
    assert marked is not None
    assert (marked.epoch, marked.message, marked.mode) == (4, "", Mode.INITIALIZE)
    assert Catalogue(store, TREE, lambda: 4).claim(leaf, Mode.INITIALIZED, Report(SLOT)) is Claim.WON


def test_agents_and_admins_need_no_epoch_and_leave_it_as_it_is(store: FaultyStore) -> None:
    added(store, 9, Mode.SNAPSHOT)
    agent = Catalogue(store, TREE)
    leaf = agent.leaf(TREE.leaf("a", SLOT))
    assert leaf is not None
    assert agent.claim(leaf, Mode.SNAPSHOTTING, Report("0")) is Claim.WON
    moved = agent.leaf(leaf.dn)
    assert moved is not None
    assert moved.epoch == 9


@pytest.mark.parametrize(
    ("epoch", "mode", "is_marked"),
    [
        (None, Mode.INITIALIZE, True),  # of a `run`, or by hand
        (8, Mode.INITIALIZE, True),  # of the tenure just before
        (7, Mode.INITIALIZE, False),  # of one that stood still for a whole tenure
        (7, Mode.MERGE, True),
        (12, Mode.MERGE, False),  # somebody has the lease after us
    ],
)
def test_a_new_tenure_marks_what_is_in_flight(
    store: FaultyStore, epoch: int | None, mode: Mode, is_marked: bool
) -> None:
    added(store, epoch, mode)
    assert mark_all(Catalogue(store, TREE, lambda: 9), 9, LOG) == int(is_marked)


def test_a_leaf_that_may_not_be_written_keeps_no_other_from_being_marked(store: FaultyStore) -> None:
    class Closed(MemoryStore):
        def claim(self, dn: str, *arguments: object, **more: object) -> Claim:
            if ",sstVirtualMachine=a," in dn:
                raise Refused(ReturnValue.CANNOT_CONNECT_TO_BACKEND, f"{dn}: no write access")
            return super().claim(dn, *arguments, **more)  # type: ignore[arg-type]

    closed = Closed(TREE.suffix)
    Directory(memory=closed)
    catalogue = Catalogue(closed, TREE, lambda: 3)
    for machine in ("a", "b"):
        assert Catalogue(closed, TREE).add_leaf(machine, SLOT, SLOT)
    assert mark_all(catalogue, 3, LOG) == 1


def test_who_takes_the_lease_marks_what_is_in_flight_before_its_first_turn(
    store: FaultyStore, clock: Clock, lease_of: Callable[..., Lease]
) -> None:
    added(store, None, Mode.MERGE)
    seen: list[int | None] = []

    def turn() -> None:
        seen.extend(leaf.epoch for leaf in Catalogue(store, TREE).leaves())

    metrics, told = Metrics(), list[str]()
    leases = [lease_of("a"), lease_of("b")]
    both = [
        Serving(
            lease,
            Catalogue(Leased(store, lease), TREE, lambda lease=lease: lease.epoch),  # type: ignore[misc]
            lambda: turn,
            structlog.get_logger(),
            Metrics() if lease is leases[0] else metrics,
            told.append,
        )
        for lease in leases
    ]
    both[0].turn()
    with both[1]:
        both[1].turn()
        clock.time += PATIENCE
        both[1].turn()
        assert seen == [1, 2]
        assert metrics.registry.get_sample_value("vmkeep_controller_leader") == 1
        assert metrics.registry.get_sample_value("vmkeep_controller_epoch") == 2
        assert told == [
            "at work: has the lease, epoch 1",
            "stands by: a acts, epoch 1",
            "at work: has the lease, epoch 2",
        ]
    assert metrics.registry.get_sample_value("vmkeep_controller_leader") == 0
    assert entry(store).holder == ""
    both[0].turn()
    assert seen == [1, 2, 3], "the first is woken, and goes on"


def test_a_run_writes_by_the_epoch_of_whoever_has_the_lease_at_the_time_of_its_turn(
    store: FaultyStore, clock: Clock, lease_of: Callable[..., Lease]
) -> None:
    guest = Guest(store, TREE)
    seen: list[int | None] = []
    turn = guest.before(lambda: seen.append(guest.catalogue.epoch()))
    turn()
    for holder in ("a", "b"):
        assert lease_of(holder).attend()
        turn()
        clock.time += PATIENCE
        lease_of("c").attend()
        store.replace(TREE.lease, {Attribute.LEASE_HOLDER: ()})
    assert seen == [None, 1, 2]


# for people


def test_two_processes_have_two_names_and_a_name_of_the_settings_is_used() -> None:
    first, second = holder_of_this_process(None), holder_of_this_process("ctrl-a")
    assert first != holder_of_this_process(None)
    assert second.startswith("ctrl-a:")
    assert len(first.split(":")) == 3


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (4, "renewed 4 s ago"),
        (75, "renewed 1 min 15 s ago"),
        (7300, "renewed 2 h 1 min ago"),
        (-3, "renewed 3 s ahead of"),
    ],
)
def test_an_admin_reads_who_acts_since_when_and_how_long_ago_that_was_renewed(seconds: int, said: str) -> None:
    changed = datetime(2026, 1, 1, 3, 0, 0, tzinfo=UTC)
    now = datetime.fromtimestamp(changed.timestamp() + seconds, UTC)
    found = LeaseEntry("ctrl-a:17:xy", "v", 7, SLOT, 30.0, changed)
    sentence = found.sentence(now)
    assert sentence.startswith(f"ctrl-a:17:xy has held the lease since {SLOT}, epoch 7, {said}")
    assert sentence.endswith("is any controller running?") is (seconds > 65)
    assert found.seems_held(now) is (seconds <= 65)
    assert "no controller holds the lease" in LeaseEntry(epoch=3).sentence(now)


@pytest.mark.parametrize(("seconds", "epoch"), [("soon", "7"), ("-1", "007"), ("", "")])
def test_a_lease_with_odd_values_can_be_read(store: FaultyStore, seconds: str, epoch: str) -> None:
    store.add(TREE.lease, {Attribute.LEASE_SECONDS: (seconds,), Attribute.EPOCH: (epoch,)})
    assert entry(store).seconds == 0
    assert entry(store).epoch in (0, 7)


def test_a_lease_that_cannot_be_given_back_is_told_and_the_controller_ends(
    store: FaultyStore, lease_of: Callable[..., Lease]
) -> None:
    said = CapturingLogger()
    log = structlog.wrap_logger(said, processors=[lambda _log, _level, event: event["event"]])
    lease = lease_of("a")
    serving = Serving(
        lease, Catalogue(Leased(store, lease), TREE), lambda: lambda: None, log, Metrics(), lambda _: None
    )
    with serving:
        serving.turn()
        store.lose = Fate.NOT_SENT
    assert entry(store).holder == "a"
    assert str(said.calls[-1].args[0]).startswith("the lease could not be given back, the others wait until it runs")
