"""Measures several things in turn, so that what disturbs one disturbs the others. Used by every row."""

from collections.abc import Callable, Sequence

Measure = Callable[[], float]


def in_turn(measures: Sequence[Measure], rounds: int, warm_up: int = 1) -> list[list[float]]:
    """Samples of each measure, in the order given. The first rounds are dropped: they pay for cold caches.

    Every second round goes backwards: nobody always runs first.
    """
    samples: list[list[float]] = [[] for _ in measures]
    for number in range(warm_up + rounds):
        order = list(enumerate(measures))
        for place, measure in order if number % 2 == 0 else reversed(order):
            taken = measure()
            if number >= warm_up:
                samples[place].append(taken)
    return samples
