"""What a hold may say, and what `vmkeep prune` shows of machines."""

from datetime import UTC, datetime, timedelta

import pytest
import typer

from vmkeep.console import pruned
from vmkeep.console.cli_prune import _policy
from vmkeep.console.holding import hold_for
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.pruning import Judged
from vmkeep.contract.retention import Hold, Policy, hold_text, read_hold

NOW = datetime(2026, 2, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("reason", "until", "why"),
    [
        ("  ", None, "say why"),
        ("x" * 501, None, "at most 500"),
        ("bell\a", None, "say why"),
        ("20270101T000000Z is when it ends", None, "begins with a time"),
        ("the audit", NOW, "20260201T000000Z has passed"),
    ],
)
def test_what_is_no_hold_is_refused(reason: str, until: datetime | None, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        hold_for(reason, until, NOW)


@pytest.mark.parametrize("until", [None, NOW + timedelta(seconds=1)])
def test_a_hold_is_read_as_it_was_written_on_one_line(until: datetime | None) -> None:
    hold = hold_for(" the audit\n of 2026 ", until, NOW)
    assert hold == Hold("the audit of 2026", until)
    assert read_hold(hold_text(hold)) == hold


def test_a_policy_is_tried_only_where_nothing_goes() -> None:
    assert _policy("last=2", dry_run=True) == Policy(last=2)
    assert _policy(None, dry_run=False) is None
    for text, dry_run in (("last=2", False), ("everything", True)):
        with pytest.raises(typer.BadParameter):
            _policy(text, dry_run=dry_run)


def test_each_leaf_is_a_line_and_what_the_directory_holds_is_shown_as_text() -> None:
    leaves = [Leaf("dn", "web", f"2026010{day}T000000Z", "finished", "0", hold="why") for day in (2, 1)]
    judged = (Judged(leaves[0], False, ("last 1 of 1", "held: \x1b[31mred")), Judged(leaves[1], True, ("no rule",)))
    machines = [pruned.Machine("web", judged), pruned.Machine("zoo", trouble="zoo: unreadable")]
    assert pruned.lines(machines) == [
        "machine  timestamp                why",
        "web      20260102T000000Z  stays  last 1 of 1; held: ?[31mred",
        "web      20260101T000000Z  goes   no rule",
    ]
    assert pruned.table(machines).row_count == 2
    assert pruned.summary(machines) == (
        "1 of 2 backups of 2 machines would go; 1 machines keep everything: their plan cannot be read"
    )
    assert pruned.summary(machines[:1], asked=1) == "1 of 2 backups of 1 machines go; 1 deletions were asked for"
    [web, zoo] = pruned.to_json(machines)["machines"]  # type: ignore[misc]
    assert (web["backups"][0]["hold"], zoo["trouble"], zoo["backups"]) == ("why", "zoo: unreadable", [])
