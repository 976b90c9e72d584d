"""The catalogue of planted bugs fits the project as it stands: each can be planted, and its tests are there."""

import ast
from pathlib import Path

import pytest

from tests.planted import imported
from tests.planted.bug import Bug, Edit
from tests.planted.catalogue import BUGS
from tests.planted.planting import ROOT, NoAnswer, check

bugs = pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)


@bugs
def test_a_bug_can_be_planted_and_is_a_program_still(bug: Bug) -> None:
    check(bug)
    texts = {edit.file: (ROOT / edit.file).read_text() for edit in bug.edits}
    for edit in bug.edits:
        texts[edit.file] = texts[edit.file].replace(edit.old, edit.new)
    for text in texts.values():
        ast.parse(text)


@bugs
def test_its_tests_are_there(bug: Bug) -> None:
    for test in bug.tests:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        assert name.partition("[")[0] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_no_two_bugs_are_one() -> None:
    assert len({bug.name for bug in BUGS}) == len({bug.edits for bug in BUGS}) == len(BUGS)


def test_a_bug_that_fits_the_project_no_more_is_told_by_name() -> None:
    edit = Edit("nodeagent/runner.py", "what stands nowhere", "")
    with pytest.raises(NoAnswer, match="of old: what it changes stands 0 times"):
        check(Bug("of old", "", (edit,), ()))


def test_a_module_from_elsewhere_is_noticed(tmp_path: Path) -> None:
    assert imported.strangers(ROOT) == []
    assert any("tests.planted" in stranger for stranger in imported.strangers(tmp_path))
