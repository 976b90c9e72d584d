"""The benchmarks take turns."""

from bench.alternating import in_turn


def test_every_second_round_goes_backwards_and_the_first_is_dropped() -> None:
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    ours, raw = in_turn([lambda: measure("ours"), lambda: measure("raw")], rounds=2)
    assert calls == ["ours", "raw", "raw", "ours", "ours", "raw"]
    assert (ours, raw) == ([4.0, 5.0], [3.0, 6.0])


def test_each_measure_has_as_many_samples_as_rounds() -> None:
    samples = in_turn([lambda: 1.0, lambda: 2.0, lambda: 3.0], rounds=7, warm_up=2)
    assert samples == [[1.0] * 7, [2.0] * 7, [3.0] * 7]
