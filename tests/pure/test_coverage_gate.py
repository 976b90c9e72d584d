"""The gate sees handlers that no test has entered, and takes nothing measured for nothing shown."""

from tests.coverage_gate import Counted, judge, never_entered

SOURCE = """\
try:
    one()
except OSError:
    two()
except (
    KeyError,
    ValueError,
) as why:
    raise Else(
        why
    ) from None
"""


def test_a_handler_whose_body_never_began_is_named_by_its_line() -> None:
    assert never_entered(SOURCE, {1, 2}) == [3, 5]
    assert never_entered(SOURCE, {1, 2, 3, 4, 5}) == [5], "that the type was compared is not enough"
    assert never_entered(SOURCE, {4, 9}) == []


def test_lines_and_branches_both_have_to_be_enough() -> None:
    assert judge("all", Counted(100, 100, 95, 100))[1]
    assert not judge("branches", Counted(100, 100, 94, 100))[1]
    assert judge("lines", Counted(90, 100, 95, 100)) == (
        "lines        92.50 % with branches,  95.00 % of branches alone: each has to be 95 % at least",
        False,
    )


def test_nothing_measured_is_not_enough() -> None:
    assert not judge("nothing", Counted())[1]
    assert not judge("unseen", Counted(0, 100, 0, 0))[1]
