"""What the benchmarks print and write."""

import json

from rich.console import Console

from bench.figures import Figure, spread
from bench.latencies import Latency
from bench.report import shown, to_json, to_latency_table, to_table

GOOD = Figure(
    row="merge",
    measured="merge, another filesystem",
    amount="1024 MiB",
    twin="virDomainBlockPull",
    value=spread([1.02, 1.01, 1.04]),
    bar=1.05,
    ours=spread([2.0, 2.1, 2.2]),
    raw=spread([1.9, 2.0, 2.1]),
    note="a remark",
)
BAD = Figure(row="gap", measured="a gap", amount="64 MiB", twin="save", value=spread([200.0]), bar=150.0, unit="ms")


def text_of(*, quick: bool) -> str:
    console = Console(width=240)
    with console.capture() as capture:
        console.print(to_table([GOOD, BAD], quick=quick))
    return capture.get()


def test_the_table_says_of_each_row_whether_it_meets_its_bar() -> None:
    text = text_of(quick=False)
    assert "at or better than its bar" in text
    assert "MISSES its bar" in text
    assert "1.020 × (1.010–1.040)" in text
    assert "≤ 150.00 ms" in text
    assert "a remark" in text


def test_a_quick_run_is_marked_as_such() -> None:
    assert "QUICK" in text_of(quick=True)
    assert "QUICK" not in text_of(quick=False)
    assert json.loads(to_json([], quick=True, runs=3))["quick"] is True


def test_json_holds_every_figure_with_its_verdict() -> None:
    content = json.loads(to_json([GOOD, BAD], quick=False, runs=5))
    assert content["runs"] == 5
    good, bad = content["figures"]
    assert good["value"] == {"median": 1.02, "least": 1.01, "most": 1.04, "count": 3}
    assert (good["is_met"], bad["is_met"]) == (True, False)
    assert bad["ours"] is None
    assert bad["verdict"] == "MISSES its bar"


def test_what_was_not_measured_is_shown_as_nothing() -> None:
    assert shown(None, "s") == ""


def test_write_latencies_have_a_table_of_their_own_and_no_verdict() -> None:
    line = Latency("live", "another filesystem", "merge", 2.04, 40.9, 42.4, 50.8, 134)
    content = json.loads(to_json([GOOD, line], quick=False, runs=5))
    assert len(content["figures"]) == 1
    assert content["write_latencies"][0]["p99"] == 40.9
    console = Console(width=200)
    with console.capture() as capture:
        console.print(to_latency_table([line]))
    row = next(text for text in capture.get().splitlines() if "another filesystem" in text)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "another filesystem", "live", "merge", "2.0", "40.9", "42.4", "50.8", "134",
    ]  # fmt: skip
