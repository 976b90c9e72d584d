"""Memory on its way from the RAM disk to retain: its machine runs by then, so the copy stops with the agent."""

from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from nodeagent.host.copying import Stopped
from nodeagent.host.errors import HostFailure
from nodeagent.operations.snapshot import snapshot
from nodeagent.order import Order
from nodeagent.steps import Facts, Host
from tests.cluster.plain import files_below
from tests.orders import host_at, order_in
from vmkeep.contract.modes import Mode

MEMORY = b"LibvirtQemudSave" + b"memory" * 1000


@pytest.fixture
def order(tmp_path: Path) -> Order:
    for name in ("retain", "ram"):
        (tmp_path / name).mkdir()
    return order_in(tmp_path, Mode.SNAPSHOTTING, ram_disk=str(tmp_path / "ram"))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return host_at(tmp_path)


def keep_state(order: Order, host: Host, saved: Path) -> Facts:
    steps = {step.name: step for step in snapshot(order, host)}
    steps["directories"].apply({})
    return steps["state"].apply({"state_path": str(saved)})


def test_it_stops_and_is_begun_anew_by_the_next_agent(order: Order, host: Host, tmp_path: Path) -> None:
    saved = Path(order.state_candidates[0])
    saved.write_bytes(MEMORY)
    host.stop.set()
    with pytest.raises(Stopped):
        keep_state(order, host, saved)
    assert files_below(tmp_path) == [f"ram/{saved.name}"]
    facts = keep_state(order, replace(host, stop=Event()), saved)
    assert facts["state_size"] == len(MEMORY)
    assert not saved.exists()
    assert Path(order.paths.retain / "vm.state").read_bytes() == MEMORY


def test_reading_what_libvirt_wrote_to_retain_stops_too(order: Order, host: Host) -> None:
    saved = Path(order.state_candidates[1])
    saved.parent.mkdir(parents=True)
    saved.write_bytes(MEMORY)
    host.stop.set()
    with pytest.raises(Stopped):
        keep_state(order, host, saved)
    assert saved.read_bytes() == MEMORY


def test_memory_that_was_not_yet_on_the_disk_when_power_was_lost_is_no_part_of_a_set(order: Order, host: Host) -> None:
    saved = Path(order.state_candidates[1])
    saved.parent.mkdir(parents=True)
    for left in (b"", MEMORY.replace(b"Save", b"Part"), bytes(len(MEMORY))):
        saved.write_bytes(left)
        with pytest.raises(HostFailure, match="not whole"):
            keep_state(order, host, saved)
    saved.unlink()
    with pytest.raises(HostFailure, match="missing"):
        keep_state(order, host, saved)
