"""The agent is killed after every side effect and every line of its journal, and again in the recovery: same end.

Exhaustively, for every kind of work in the table of modes; also where a step is refused and all is taken back.
"""

import pytest

from tests.crash_states.being_killed import killed_twice
from tests.crash_states.losing_power import directories
from tests.crash_states.worked_on import WORLDS, step_names
from vmkeep.contract.modes import TABLE, Kind, Mode

# Scenes that show little which others do not; with `--all-faults`.
RARE = {
    (Mode.SNAPSHOTTING, "off"),
    (Mode.MERGING, "live, its instant gone"),
    (Mode.RETAINING, "off, beside others, to another filesystem"),
    (Mode.RESTORING, "off, one image of two gone"),
    (Mode.RETAINING, "runs, to another filesystem"),
    (Mode.RESTORING, "runs, firmware is new to it"),
    (Mode.RESTORING, "runs, was off in the set"),
    (Mode.RESTORING, "off, images and definition gone"),
}
CASES = [(mode, name) for mode, scenes in WORLDS.items() for name in scenes]
# With these a step after the other is refused; `--all-faults` does it with every one that has a way back.
REFUSED = {
    Mode.SNAPSHOTTING: ("runs, memory on the RAM disk",),
    Mode.MERGING: ("live",),
    Mode.UNRETAINING_SMALL_FILES: ("a set",),
    Mode.UNRETAINING_LARGE_FILES: ("a set",),
    Mode.RESTORING: ("runs, two disks, firmware",),
}


def test_every_kind_of_work_is_killed() -> None:
    """A new one needs its world; what leaves nothing to take back needs no refusals."""
    work = {row.mode for row in TABLE if row.kind is Kind.AT_WORK}
    assert set(WORLDS) == work
    assert all(set(WORLDS[mode]) - {name for rare, name in RARE if rare is mode} for mode in work)
    assert set(REFUSED) == {mode for mode in work if any(scenery.goes_back for scenery in WORLDS[mode].values())}


@pytest.mark.parametrize(("mode", "name"), CASES)
def test_killed_after_anything_it_did_and_again_in_recovery_the_work_is_done(
    mode: Mode, name: str, request: pytest.FixtureRequest
) -> None:
    if (mode, name) in RARE and not request.config.getoption("--all-faults"):
        pytest.skip("with --all-faults")
    scenery = WORLDS[mode][name]
    with directories(*scenery.bases) as roots:
        found = killed_twice(scenery.make(roots))
    assert found.once > 10


@pytest.mark.parametrize(("mode", "name"), [case for case in CASES if WORLDS[case[0]][case[1]].goes_back])
def test_refused_after_any_step_and_killed_twice_while_taking_it_back_all_is_as_it_was(
    mode: Mode, name: str, request: pytest.FixtureRequest
) -> None:
    if name not in REFUSED[mode] and not request.config.getoption("--all-faults"):
        pytest.skip("with --all-faults")
    scenery = WORLDS[mode][name]
    for refused in step_names(scenery):
        with directories(*scenery.bases) as roots:
            assert killed_twice(scenery.make(roots, refused)).once > 3, refused


def test_a_recovery_that_ends_wrongly_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is done, and is done again by whoever comes after a kill."""
    monkeypatch.setattr("nodeagent.operations.resuming.Resuming.saved", lambda _self, _facts: None)
    scenery = WORLDS[Mode.SNAPSHOTTING]["paused"]
    with directories(*scenery.bases) as roots, pytest.raises(AssertionError, match="switched off before") as why:
        killed_twice(scenery.make(roots))
    assert "killed after save" in "".join(why.value.__notes__)
