"""Statistics of the benchmarks, and when a bar is met."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import MEETS, MISSES, Figure, differences, percentile, ratios, spread
from bench.rows.retain_rename import noise

SAMPLES = st.lists(st.floats(min_value=0.001, max_value=1e6), min_size=1, max_size=50)


def figure(*samples: float, bar: float = 1.1) -> Figure:
    return Figure(row="gap", measured="a gap", amount="64 MiB", twin="save and restore", value=spread(samples), bar=bar)


@given(SAMPLES)
def test_a_median_lies_between_the_least_and_the_most(samples: list[float]) -> None:
    found = spread(samples)
    assert found.least <= found.median <= found.most
    assert found.count == len(samples)


@given(SAMPLES, st.floats(min_value=0.1, max_value=100))
def test_a_percentile_is_a_sample_that_so_many_do_not_exceed(samples: list[float], percent: float) -> None:
    found = percentile(samples, percent)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= len(samples) * percent / 100 - 1e-9


def test_the_99th_percentile_of_300_leaves_three_out() -> None:
    assert percentile([float(number) for number in range(1, 301)], 99) == 297


def test_nothing_measured_has_no_median_and_no_percentile() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        spread([])
    with pytest.raises(ValueError, match="no percentile"):
        percentile([], 50)


def test_each_run_is_held_against_its_neighbour() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert differences([2.0, 9.0], [1.0, 3.0]) == [1.0, 6.0]


def test_runs_without_a_neighbour_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_a_median_at_the_bar_meets_it() -> None:
    assert figure(1.0, 1.1, 9.0).verdict == MEETS


def test_a_median_above_the_bar_misses_it() -> None:
    assert figure(1.0, 1.11, 1.12).verdict == MISSES


def test_the_noise_of_a_run_is_its_slowest_against_its_median() -> None:
    assert noise(spread([1.0, 2.0, 2.5])) == 1.25


def test_noise_excuses_no_more_than_half_as_long_again() -> None:
    assert noise(spread([1.0, 2.0, 30.0])) == 1.5
