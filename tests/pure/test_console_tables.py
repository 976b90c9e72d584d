"""How a machine's leaves are summed up for an admin, and what reaches the terminal."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from vmkeep.console.effective import settings_of
from vmkeep.console.status import Standing, status_of
from vmkeep.console.tables import age_text, size_text, status_lines, status_table
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.machine import Machine
from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import Source, resolve
from vmkeep.directory.survey import Surveyed

NOW = datetime(2026, 1, 10, tzinfo=UTC)
WEB = Surveyed(Machine("dn", "web", "n1"), ())


def leaf(day: int, mode: str = "finished", rv: int = 0, message: str = "") -> Leaf:
    moment = f"202601{day:02d}T000000Z"
    return Leaf("dn", "web", moment, mode, moment, return_value=rv, message=message)


GOOD, BAD, AT_WORK = leaf(2), leaf(3, "merging", 11), leaf(4, "retaining")


@pytest.mark.parametrize(
    ("leaves", "standing"),
    [
        ([], Standing.NEVER),
        ([GOOD], Standing.OK),
        ([GOOD, BAD], Standing.FAILED),
        ([leaf(1, "snapshotting", 5), GOOD], Standing.OK),
        ([GOOD, BAD, AT_WORK], Standing.RUNNING),
        ([leaf(1, "teleport")], Standing.NEVER),
        ([leaf(1, "finished", 100)], Standing.FAILED),
    ],
)
def test_a_machine_stands_as_its_newest_leaves_say(leaves: list[Leaf], standing: Standing) -> None:
    assert status_of(WEB, leaves, NOW).standing is standing
    assert status_of(WEB, leaves[::-1], NOW).standing is standing


def test_the_last_success_is_the_newest_good_leaf_whatever_failed_since() -> None:
    found = status_of(WEB, [leaf(1), GOOD, BAD], NOW)
    assert (found.last_success, found.age) == ("20260102T000000Z", 8 * 86400)
    assert found.failed == BAD


@pytest.mark.parametrize(("digest", "success"), [("", "20260102T000000Z"), ("blake3:0", "20260103T000000Z")])
def test_a_leaf_that_was_refused_because_it_is_no_good_backup_is_no_success(digest: str, success: str) -> None:
    refused = replace(leaf(3, "unretainingSmallFiles", 18), manifest_digest=digest)
    assert status_of(WEB, [GOOD, refused], NOW).last_success == success


def test_a_plan_that_cannot_be_read_is_shown_and_hides_nothing() -> None:
    odd = Surveyed(WEB.machine, (Source("machine", "dn", {Attribute.EXCLUDE: ["perhaps"]}),))
    found = status_of(odd, [GOOD], NOW)
    assert found.standing is Standing.OK
    assert "'perhaps'" in found.trouble


@pytest.mark.parametrize("message", ["[red]no[/red]", "two\nlines", "\x1b[2Jgone", "tab\there"])
def test_what_the_directory_holds_never_commands_the_terminal(message: str) -> None:
    found = [status_of(WEB, [leaf(3, "merging", 11, message)], NOW)]
    console = Console(width=200, force_terminal=False, record=True)
    with console.capture() as captured:
        console.print(status_table(found))
    for shown in (captured.get(), "\n".join(status_lines(found))):
        assert len(shown.strip().splitlines()) == 2
        assert "\x1b" not in shown
    assert "[red]no[/red]" in captured.get() or message != "[red]no[/red]"


@pytest.mark.parametrize(
    ("size", "text"), [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes_are_shown_in_the_largest_unit_that_fits(size: int | None, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("age", "text"), [(None, "-"), (59, "59 s"), (90, "1.5 min"), (7200, "2.0 h"), (172800, "2.0 d")]
)
def test_ages_are_shown_in_the_largest_unit_that_fits(age: float | None, text: str) -> None:
    assert age_text(age) == text


def test_an_effective_plan_names_the_origin_of_each_value() -> None:
    roots = {Attribute.BACKUP_ROOT: ["file:///b"], Attribute.RETAIN_ROOT: ["file:///r"]}
    own = Source("machine", "m", {Attribute.IMAGE_PERMISSION: ["660"]})
    shown = {
        one.attribute: (one.value, one.origin)
        for one in settings_of(resolve("web", [own, Source("cluster", "c", roots)]))
    }
    assert shown[Attribute.IMAGE_PERMISSION] == ("660", "machine")
    assert shown[Attribute.BACKUP_ROOT] == ("/b", "cluster")
    assert shown[Attribute.ITERATIONS] == ("1", "default")
