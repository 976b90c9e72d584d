"""The effective plan: attribute by attribute with origins; unreadable values refuse with a name and a number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import Plan, Source, is_excluded, resolve

ROOTS = {Attribute.BACKUP_ROOT: ["file:///var/backup"], Attribute.RETAIN_ROOT: ["file:///var/retain"]}
ORIGINS = ("machine", "pool", "cluster")


def sources(*levels: dict[str, list[str]]) -> tuple[Source, ...]:
    return tuple(Source(origin, f"ou={origin}", values) for origin, values in zip(ORIGINS, levels, strict=True))


def plan(**values: str) -> Plan:
    """A cluster plan with the roots and what else is given, by the names of Attribute."""
    more = {Attribute[name]: [value] for name, value in values.items()}
    return resolve("web", [Source("cluster", "ou=cluster", {**ROOTS, **more})])


@given(st.lists(st.none() | st.integers(min_value=1, max_value=99), min_size=3, max_size=3))
def test_the_nearest_entry_that_sets_an_attribute_wins_and_the_rest_is_inherited(values: list[int | None]) -> None:
    levels = [{} if value is None else {Attribute.ITERATIONS: [str(value)]} for value in values]
    levels[2] |= ROOTS
    found = resolve("web", sources(*levels))
    nearest = next((index for index, value in enumerate(values) if value is not None), None)
    assert found.iterations == (1 if nearest is None else values[nearest])
    assert found.origins.get(Attribute.ITERATIONS) == (None if nearest is None else ORIGINS[nearest])
    assert found.origins[Attribute.BACKUP_ROOT] == "cluster"


def test_attribute_names_compare_without_case() -> None:
    odd = {name.upper(): values for name, values in ROOTS.items()}
    assert resolve("web", [Source("cluster", "ou=cluster", odd)]).backup_root == "/var/backup"


@given(st.sampled_from(Attribute), st.text(max_size=40))
def test_any_value_is_read_or_refused_with_machine_attribute_and_entry(attribute: Attribute, value: str) -> None:
    try:
        resolve("web", [Source("cluster", "ou=cluster", {**ROOTS, attribute: [value]})])
    except Refused as why:
        assert why.sentence.startswith(f"web: {attribute} is ")
        assert "ou=cluster" in why.sentence
        assert why.code is not ReturnValue.SUCCESS


PATHS = st.lists(st.text("abz.-_ 09", min_size=1, max_size=8), min_size=1, max_size=5)


@given(PATHS)
def test_a_root_is_absolute_canonical_and_never_climbs(parts: list[str]) -> None:
    try:
        root = plan(BACKUP_ROOT="file:///" + "/".join(parts)).backup_root
    except Refused:
        assert "." in parts or ".." in parts
        return
    assert root.startswith("/")
    assert not {"", ".", ".."} & set(root.split("/")[1:])


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("BACKUP_ROOT", "ftp://host/x", 35),
        ("BACKUP_ROOT", "/var/backup", 102),
        ("BACKUP_ROOT", "var/backup", 102),
        ("BACKUP_ROOT", "file://host/x", 102),
        ("RETAIN_ROOT", "file:///var/../etc", 102),
        ("RETAIN_ROOT", "file:///var//x", 102),
        ("RAM_DISK", "file:///run/x\n", 102),
        ("IMAGE_PERMISSION", "999", 39),
        ("IMAGE_PERMISSION", "06601", 39),
        ("ITERATIONS", "0", 39),
        ("ITERATIONS", "-1", 39),
        ("BANDWIDTH_MERGE", "fast", 39),
        ("IMAGE_OWNER", "root;rm", 39),
        ("FORCE_START", "yes", 39),
        ("CRON_MINUTE", "61", 105),
        ("CRON_HOUR", "* *", 105),
        ("CRON_DAY_OF_WEEK", "", 105),
    ],
)
def test_an_unreadable_value_refuses_with_its_number(name: str, value: str, code: int) -> None:
    with pytest.raises(Refused) as caught:
        plan(**{name: value})
    assert int(caught.value.code) == code


def test_a_plan_without_a_root_is_refused_with_32_and_says_where_it_looked() -> None:
    with pytest.raises(Refused, match="no plan sets sstBackupRootDirectory; looked in ou=machine, ou=pool") as caught:
        resolve("web", sources({}, {}, {}))
    assert caught.value.code is ReturnValue.CANNOT_FIND_CONFIGURATION


def test_permissions_are_octal_digits() -> None:
    assert plan(IMAGE_PERMISSION="660").image_permission == 0o660


@pytest.mark.parametrize(("machine", "pool", "excluded"), [("TRUE", "FALSE", True), ("FALSE", "TRUE", False)])
def test_the_machines_own_word_on_being_left_out_wins(machine: str, pool: str, excluded: bool) -> None:
    levels = ({Attribute.EXCLUDE: [machine]}, {Attribute.EXCLUDE: [pool]}, {})
    assert is_excluded("web", sources(*levels)) is excluded


def test_a_machine_that_is_left_out_needs_no_readable_plan() -> None:
    assert is_excluded("web", [Source("machine", "x", {Attribute.EXCLUDE: ["true"], Attribute.ITERATIONS: ["?"]})])


def test_several_values_of_a_cron_field_are_a_list() -> None:
    values = {**ROOTS, Attribute.CRON_MINUTE: ["0", "30"], Attribute.CRON_HOUR: ["3"], Attribute.CRON_ACTIVE: ["TRUE"]}
    schedule = resolve("web", [Source("cluster", "x", values)]).schedule
    assert schedule is not None
    assert (schedule.expression, schedule.active) == ("0,30 3 * * *", True)
