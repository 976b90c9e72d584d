"""Which method a machine gets and which way its data takes, by table."""

from dataclasses import replace

import pytest

from vmkeep.contract.machine import Power
from vmkeep.contract.methods import Choice, Method, Route, choose, route, ways

RUNNING, PAUSED, OFF = Power.RUNNING, Power.PAUSED, Power.OFF
TIE = ("it has a device of the host",)


@pytest.mark.parametrize(
    ("wished", "power", "obstacles", "expected"),
    [
        (Method.SAVE, RUNNING, (), Choice(Method.SAVE)),
        (Method.LIVE, RUNNING, (), Choice(Method.LIVE)),
        (Method.DISK, RUNNING, TIE, Choice(Method.DISK)),
        (Method.AUTO, RUNNING, (), Choice(Method.LIVE)),
        (Method.AUTO, RUNNING, TIE, Choice(Method.SAVE, "saved, not live: it has a device of the host")),
        (Method.LIVE, PAUSED, (), Choice(Method.SAVE, "saved, not live: it is paused")),
        (Method.AUTO, PAUSED, (), Choice(Method.SAVE, "saved, not live: it is paused")),
        (Method.DISK, PAUSED, (), Choice(Method.DISK)),
        *((method, OFF, (), Choice(Method.SAVE)) for method in Method),
    ],
)
def test_a_machine_gets_the_method_it_can_do(
    wished: Method, power: Power, obstacles: tuple[str, ...], expected: Choice
) -> None:
    assert choose(wished, power, obstacles) == expected


@pytest.mark.parametrize(
    ("method", "power", "same", "clones", "expected"),
    [
        (Method.SAVE, RUNNING, True, False, Route(freezes=False, clones=False, once=False)),
        (Method.SAVE, RUNNING, False, True, Route(freezes=False, clones=True, once=False)),
        (Method.SAVE, OFF, True, True, Route(freezes=False, clones=False, once=False)),
        (Method.LIVE, RUNNING, True, False, Route(freezes=True, clones=False, once=False)),
        (Method.LIVE, RUNNING, True, True, Route(freezes=True, clones=True, once=False)),
        (Method.LIVE, RUNNING, False, True, Route(freezes=True, clones=True, once=False)),
        (Method.DISK, PAUSED, False, False, Route(freezes=True, clones=False, once=True)),
        (Method.DISK, OFF, False, False, Route(freezes=False, clones=False, once=False)),
    ],
)
def test_data_takes_the_shortest_way(method: Method, power: Power, same: bool, clones: bool, expected: Route) -> None:
    assert route(method, power, same_filesystem=same, clones=clones) == replace(expected, renames=same)


def test_the_ways_are_told_in_words() -> None:
    assert ways(Method.LIVE, RUNNING) == {
        "same filesystem": "frozen in place, copied to retain, overlays written back; renamed to the backup directory",
        "same, one that clones": "frozen in place, cloned, overlays written back; renamed to the backup directory",
        "another": "frozen in place, copied to the backup directory, overlays written back",
    }
