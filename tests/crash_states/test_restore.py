"""Power is lost in a restore: the machine is restored or as it was, and what was there is never lost."""

import pytest

from tests.crash_states.losing_power import directories, survive
from tests.crash_states.restored_by_losing import Cleared, Restored
from tests.pure.restored_world import Scene
from vmkeep.contract.machine import Power

OFF, PAUSED = Power.OFF, Power.PAUSED
SCENES = {
    "runs, two disks, firmware": Scene(2, 2, firmware=True, old_firmware=True),
    "runs, not kept by libvirt": Scene(1, 1, defined=False),
    "paused, comes back paused": Scene(1, 1, PAUSED, becomes=PAUSED),
    "off, one image of two gone": Scene(2, 1, OFF, firmware=True),
    "runs, without its memory": Scene(1, 1, memory=False, starts=True),
    "off, single disks": Scene(2, 2, OFF, memory=False, becomes=OFF, alone=True),
}


@pytest.mark.parametrize("name", SCENES)
def test_a_restore_ends_with_the_old_machine_or_the_new_one(name: str) -> None:
    with directories("/dev/shm") as roots:
        assert survive(Restored(roots, SCENES[name])) > 30


def test_what_a_restore_replaced_is_cleared_wholly_and_only_then() -> None:
    with directories("/dev/shm") as roots:
        assert survive(Cleared(roots, SCENES["runs, two disks, firmware"])) > 20
