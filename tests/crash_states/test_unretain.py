"""Power is lost while a set is brought back, backed out of or deleted: nothing half, nothing that nobody finds."""

import pytest

from tests.crash_states.losing_power import directories, survive
from tests.crash_states.unretained_world import LARGE, SMALL, BackedOut, Deleting, Unretaining
from vmkeep.contract.modes import Mode


@pytest.mark.parametrize(("mode", "damaged"), [(SMALL, False), (LARGE, False), (LARGE, True)])
def test_what_is_brought_back_is_whole_or_not_there(mode: Mode, damaged: bool) -> None:
    with directories("/dev/shm", "/tmp") as roots:
        assert survive(Unretaining(roots, mode, damaged=damaged)) > 20


def test_backing_out_clears_retain_and_the_note_goes_last() -> None:
    with directories("/dev/shm") as roots:
        assert survive(BackedOut(roots)) > 20


@pytest.mark.parametrize("before", [False, True], ids=["", "what a restore replaced is kept"])
def test_a_deletion_removes_its_set_and_no_other(before: bool) -> None:
    with directories("/dev/shm") as roots:
        assert survive(Deleting(roots, before=before)) > 20
