"""The generated reference is as the program is now, and the table of statuses shown there is the real one."""

import pytest

from docs.generate import REFERENCE, pages
from vmkeep.console.status import Standing, Status, to_json


@pytest.mark.parametrize("name", sorted(pages()))
def test_a_page_of_the_reference_is_fresh(name: str) -> None:
    path = REFERENCE / name
    assert path.exists(), f"{path} is missing: run `make docs`"
    assert path.read_text(encoding="utf-8") == pages()[name], f"{path} is stale: run `make docs`"


def test_no_page_stands_there_that_nobody_writes() -> None:
    assert sorted(path.name for path in REFERENCE.iterdir()) == sorted(pages())


def test_every_key_of_the_json_status_is_documented() -> None:
    for key in to_json(Status("web", None, Standing.NEVER)):
        assert f"| `{key}` |" in pages()["commands.md"]


def test_every_attribute_has_a_description_from_the_schema() -> None:
    assert [line for line in pages()["attributes.md"].splitlines() if line.endswith("|  |")] == []
