"""Power is lost in a backup: old chain or new chain, never half; a set is whole or it is none; nothing is left over."""

import pytest

from tests.crash_states.backed_up_world import BackedUp, Scene
from tests.crash_states.losing_power import directories, survive
from vmkeep.contract.machine import Power
from vmkeep.contract.methods import Method
from vmkeep.contract.modes import Mode

SNAPSHOTS = {
    "runs, memory on the RAM disk": Scene(2, firmware=True, ram_disk=True),
    "runs, memory in retain": Scene(1, start_wait=60),
    "paused": Scene(1, Power.PAUSED),
    "off": Scene(2, Power.OFF, firmware=True),
    "live": Scene(2, method=Method.LIVE, firmware=True),
    "disk": Scene(1, method=Method.DISK),
}


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_a_snapshot_leaves_the_old_chain_or_the_new_one(name: str) -> None:
    with directories("/dev/shm") as roots:
        assert survive(BackedUp(roots, SNAPSHOTS[name], Mode.SNAPSHOTTING)) > 50


MERGES = {
    "runs": Scene(2),
    "paused": Scene(1, Power.PAUSED),
    "off": Scene(2, Power.OFF),
    "live": Scene(2, method=Method.LIVE),
    "disk, copied once": Scene(1, method=Method.DISK, once=True),
    "live, its instant gone": Scene(1, method=Method.LIVE, instant_is_gone=True),
}
RETAINS = {
    "runs": Scene(2, firmware=True, ram_disk=True),
    "off, beside others": Scene(1, Power.OFF, earlier_sets=2),
}


@pytest.mark.parametrize("name", MERGES)
def test_a_merge_leaves_whole_images_and_the_set_as_it_was(name: str) -> None:
    with directories("/dev/shm") as roots:
        assert survive(BackedUp(roots, MERGES[name], Mode.MERGING)) > 20


ELSEWHERE = {
    "runs": Scene(2, firmware=True),
    "disk, copied once": Scene(1, method=Method.DISK, once=True),
    "off, beside others": Scene(1, Power.OFF, earlier_sets=2),
}


@pytest.mark.parametrize("name", RETAINS)
def test_a_retain_shows_a_set_only_once_it_is_whole_and_never_loses_the_last(name: str) -> None:
    with directories("/dev/shm") as roots:
        assert survive(BackedUp(roots, RETAINS[name], Mode.RETAINING)) > 50


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_set_copied_to_another_filesystem_is_shown_only_once_it_is_whole(name: str) -> None:
    with directories("/dev/shm", "/tmp") as roots:
        assert survive(BackedUp(roots, ELSEWHERE[name], Mode.RETAINING)) > 50
