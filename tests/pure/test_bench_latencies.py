"""What the benchmarks say of a guest's own writes."""

import pytest

from bench.latencies import Window, latency


def test_all_runs_of_a_phase_count_together_and_the_longest_silence_of_any() -> None:
    quiet = Window(taken=[0.002] * 98, arrivals=[0.0, 0.01, 0.02])
    loud = Window(taken=[0.050, 0.080], arrivals=[10.0, 10.01, 11.2])
    found = latency("live", "same filesystem", "merge", [quiet, loud])
    assert (found.p50, found.p99, found.worst, found.writes) == (2.0, 50.0, 80.0, 100)
    assert found.silence == pytest.approx(1190)


def test_the_time_between_two_runs_is_no_silence() -> None:
    found = latency("live", "same", "merge", [Window([0.001], [0.0]), Window([0.001], [99.0])])
    assert found.silence == 0


def test_a_phase_without_any_write_has_no_latency() -> None:
    with pytest.raises(ValueError, match="no percentile"):
        latency("live", "same", "merge", [])
