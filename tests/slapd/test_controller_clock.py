"""How long an agent is waited for is told by the controller's own elapsed time, whatever clocks say."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from controller.cycle import Cycle
from controller.decide import Bounds
from tests.slapd.cluster_of_peers import ClusterOfPeers
from vmkeep.contract.names import Tree
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory.catalogue import Catalogue

TAKE_UP = 300.0
BOUNDS = Bounds(timedelta(seconds=600), timedelta(seconds=TAKE_UP), 3, timedelta(seconds=60))


@dataclass
class Clocks:
    """The controller's: how far its time of day is from the directory's, and seconds since it began."""

    ahead: timedelta = timedelta()
    elapsed: float = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead + timedelta(seconds=self.elapsed)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def controller(cluster: ClusterOfPeers, clocks: Clocks) -> Iterator[Cycle]:
    store = cluster.store(cluster.slapd.identities["controller"])
    catalogue = Catalogue(store, Tree(cluster.slapd.suffix))
    yield Cycle(catalogue, BOUNDS, structlog.get_logger(), clock=clocks.now, elapsed=lambda: clocks.elapsed)
    store.close()


@pytest.mark.parametrize("hours", [0, 1])
def test_an_agent_has_its_time_by_the_controllers_own_clock(
    cluster: ClusterOfPeers, machine: str, clocks: Clocks, controller: Cycle, hours: int
) -> None:
    clocks.ahead = timedelta(hours=hours)
    cluster.add_leaf(machine, to_timestamp(datetime.now(UTC)), "snapshot", "0")
    for clocks.elapsed in (0.0, TAKE_UP - 1):
        controller.turn()
        assert cluster.modes(machine)[-1] == "snapshot"
    clocks.elapsed = TAKE_UP + 1
    controller.turn()
    assert cluster.modes(machine)[-1] == "finished"


def test_a_clock_that_is_set_in_the_middle_costs_no_agent_its_time(
    cluster: ClusterOfPeers, machine: str, clocks: Clocks, controller: Cycle
) -> None:
    cluster.add_leaf(machine, to_timestamp(datetime.now(UTC)), "snapshot", "0")
    controller.turn()
    clocks.ahead, clocks.elapsed = timedelta(hours=1), 10.0
    controller.turn()
    assert cluster.modes(machine)[-1] == "snapshot"
