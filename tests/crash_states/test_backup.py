"""Power is lost in a backup: old chain or new chain, never half; a set is whole or it is none; nothing is left over."""

import pytest

from tests.crash_states.backed_up_world import BackedUp, Scene
from tests.crash_states.losing_power import directories, survive
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode

SNAPSHOTS = {
    "runs, memory on the RAM disk": Scene(2, firmware=True, ram_disk=True),
    "runs, memory in retain": Scene(1),
    "paused": Scene(1, Power.PAUSED),
    "off": Scene(2, Power.OFF, firmware=True),
}


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_a_snapshot_leaves_the_old_chain_or_the_new_one(name: str) -> None:
    with directories("/dev/shm") as roots:
        assert survive(BackedUp(roots, SNAPSHOTS[name], Mode.SNAPSHOTTING)) > 100
