"""Random sequences that once violated something are played again: each line of regressions.txt is seed and cycles."""

from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.faults.__main__ import REGRESSIONS, play

KEPT = [tuple(map(int, line.split())) for line in REGRESSIONS.read_text().splitlines()]


@pytest.mark.parametrize(("seed", "cycles"), KEPT)
def test_a_sequence_that_once_went_wrong_goes_well(
    seed: int, cycles: int, tmp_path: Path, cluster: ClusterFactory
) -> None:
    assert play(tmp_path, seed, cycles, cluster) == []
