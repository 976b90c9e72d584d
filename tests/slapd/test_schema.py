"""The schema files: the same in both forms, loaded by a real slapd, with every trap the readers must know about."""

import re
from pathlib import Path

import pytest

from lab import programs
from lab.errors import LabError
from lab.slapd import REPOSITORY, Slapd, SlapdOptions
from tests.conftest import SlapdFactory
from vmkeep.contract import names
from vmkeep.contract.names import Attribute, Tree

SCHEMAS = ("sst", "vmkeep")
TREE = Tree("dc=example,dc=org")
PLAN = TREE.machine_plan("machine-01")
WITHOUT_EQUALITY = {
    *(Attribute.CRON_MINUTE, Attribute.CRON_HOUR, Attribute.CRON_DAY, Attribute.CRON_MONTH, Attribute.CRON_DAY_OF_WEEK),
    *(Attribute.CRON_COMMAND, Attribute.CRON_ACTIVE, Attribute.RESTORE_WITHOUT_STATE, Attribute.EXCLUDE),
    Attribute.FORCE_START,
}


@pytest.fixture(scope="module")
def server(slapd_factory: SlapdFactory) -> Slapd:
    server = slapd_factory(SlapdOptions(synchronous=False))
    server.add((REPOSITORY / "ldif/machine.ldif").read_text())
    classes = "objectClass: organizationalUnit\nobjectClass: sstVirtualizationBackupObjectClass\n"
    server.add(f"dn: {PLAN}\n{classes}ou: backup\nsstBackupExcludeFromBackup: TRUE\n")
    return server


def _definitions(path: Path) -> list[str]:
    """The definitions of a schema file of either form, white space evened out, kind in front."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\s+", " ", " ".join(lines))
    starts = r"(?:olcAttributeTypes:|attributetype|olcObjectClasses:|objectclass) (?=\()"
    found = re.split(f"({starts})", text)[1:]
    kinds = ["attribute" if "ttribute" in start else "class" for start in found[::2]]
    return [f"{kind} {body.strip()}" for kind, body in zip(kinds, found[1::2], strict=True)]


def _oid(definition: str) -> str:
    return _found(r"\( ([0-9.]+) ", definition)


def _name(definition: str) -> str:
    return _found(r" NAME '(\w+)'", definition)


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, f"{text} lacks {pattern}"
    return found.group(1)


def _all(kind: str) -> list[str]:
    files = [REPOSITORY / f"schema/{name}.ldif" for name in SCHEMAS]
    return [text for path in files for text in _definitions(path) if text.startswith(kind)]


def _change(server: Slapd, dn: str, change: str) -> None:
    server.modify(f"dn: {dn}\nchangetype: modify\n{change}\n")


@pytest.mark.parametrize("name", SCHEMAS)
def test_both_forms_of_a_schema_say_the_same(name: str) -> None:
    files = REPOSITORY / "schema"
    definitions = _definitions(files / f"{name}.ldif")

    assert definitions
    assert definitions == _definitions(files / f"{name}.schema")


def test_the_numbers_are_those_the_contract_names() -> None:
    definitions = _all("attribute") + _all("class")
    loaded = {_name(text): _oid(text) for text in definitions}

    assert {name: oid for name, oid in loaded.items() if name in names.OIDS} == names.OIDS
    assert len(set(loaded.values())) == len(loaded) == len(definitions)


def test_everything_is_described() -> None:
    assert [text for text in _all("attribute") + _all("class") if not re.search(r" DESC '\w[^']+'", text)] == []


def test_our_own_classes_demand_nothing_and_allow_every_attribute_of_ours() -> None:
    own = {_name(text): text for text in _all("class") if "vmkeep" in _name(text)}
    allowed = {name: set(_found(r" MAY \( (.*?) \)", text).split(" $ ")) for name, text in own.items()}

    beside = [text for name, text in own.items() if name != "vmkeepLease"]  # which is an entry of its own
    assert all(" AUXILIARY " in text and " MUST " not in text for text in beside)
    assert set(allowed) == {"vmkeepLeaf", "vmkeepPlan", "vmkeepLease"}
    ours = {name for name in Attribute if name.startswith("vmkeep")}
    both = {Attribute.METHOD, Attribute.GROUP, Attribute.START_WAIT}
    assert allowed["vmkeepLeaf"] & allowed["vmkeepPlan"] == both, "wished in the plan, used on the leaf"
    borrowed = {Attribute.RESTORE_WITHOUT_STATE, "description"}
    assert set.union(*allowed.values()) == ours | borrowed, "a leaf may say how it is restored"
    assert allowed["vmkeepLeaf"] & allowed["vmkeepLease"] == {Attribute.EPOCH}, "so that late writes are refused"


def test_slapd_reads_the_conf_form(tmp_path: Path) -> None:
    lines = ["include /etc/ldap/schema/core.schema"]
    lines += [f"include {REPOSITORY}/schema/{name}.schema" for name in SCHEMAS]
    (tmp_path / "slapd.conf").write_text("\n".join([*lines, "database config", ""]))
    (tmp_path / "config").mkdir()

    programs.run(["slaptest", "-f", tmp_path / "slapd.conf", "-F", tmp_path / "config"])

    assert len(list((tmp_path / "config/cn=config/cn=schema").glob("*vmkeep.ldif"))) == 1


def test_slapd_serves_what_the_files_say(server: Slapd) -> None:
    [served] = server.search("cn=subschema", "(objectClass=subschema)", "base", "attributeTypes", "objectClasses")
    definitions = served["attributeTypes"] + served["objectClasses"]
    there = {_oid(text): re.sub(r"\s+", " ", text) for text in definitions}

    for text in _all("attribute") + _all("class"):
        assert there[_oid(text)] == text.partition(" ")[2].replace("  ", " ")


def test_exactly_the_schedule_and_the_switches_lack_an_equality_rule() -> None:
    lacking = {_name(text) for text in _all("attribute") if " EQUALITY " not in text}

    assert lacking == WITHOUT_EQUALITY


@pytest.mark.parametrize("matching", ["({}=TRUE)", "({}=FALSE)", "(!({}=TRUE))"])
def test_a_switch_matches_nothing_in_a_filter_not_even_denied(server: Slapd, matching: str) -> None:
    assert server.search(PLAN, matching.format(Attribute.EXCLUDE), "base") == []


def test_a_switch_is_found_by_its_presence(server: Slapd) -> None:
    assert len(server.search(PLAN, f"({Attribute.EXCLUDE}=*)", "base")) == 1


def test_one_value_of_a_switch_cannot_be_deleted_but_the_switch_can_be_replaced(server: Slapd) -> None:
    with pytest.raises(LabError, match=r"Inappropriate matching \(18\)"):
        _change(server, PLAN, f"delete: {Attribute.EXCLUDE}\n{Attribute.EXCLUDE}: TRUE")

    _change(server, PLAN, f"replace: {Attribute.EXCLUDE}\n{Attribute.EXCLUDE}: TRUE")


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        (Attribute.IMAGE_PERMISSION, "0660"),
        (Attribute.DIRECTORY_PERMISSION, "0770"),
        (Attribute.ITERATIONS, "many"),
        (Attribute.EXCLUDE, "true"),
        (Attribute.EXCLUDE, "yes"),
    ],
)
def test_a_value_against_the_syntax_is_refused(server: Slapd, attribute: str, value: str) -> None:
    with pytest.raises(LabError, match=r"Invalid syntax \(21\)"):
        _change(server, PLAN, f"replace: {attribute}\n{attribute}: {value}")


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        (Attribute.IMAGE_PERMISSION, "660"),
        (Attribute.IMAGE_PERMISSION, "999"),  # no octal number, but an integer: the reader has to refuse it
        (Attribute.IMAGE_FORMAT, "longer than eight"),
        (Attribute.IMAGE_OWNER, "nobody knows this one"),
        (Attribute.RETAIN_ROOT, "not/a/url"),
    ],
)
def test_a_value_within_the_syntax_is_stored_whatever_it_means(server: Slapd, attribute: str, value: str) -> None:
    _change(server, PLAN, f"replace: {attribute}\n{attribute}: {value}")

    [stored] = server.search(PLAN, "(objectClass=*)", "base", attribute)
    assert stored[attribute] == [value]


def test_an_entry_of_nothing_but_an_auxiliary_class_is_refused(server: Slapd) -> None:
    leaf = f"dn: ou=20260102T000000Z,{PLAN}\nobjectClass: sstProvisioning\nsstProvisioningExecutionDate: 0\n"
    modes = "sstProvisioningMode: initialize\nsstProvisioningState: 0\n"

    with pytest.raises(LabError, match="no structural object class"):
        server.add(leaf + modes)


def test_the_mode_compares_without_case_and_not_by_parts(server: Slapd) -> None:
    dn = f"ou=20260101T000000Z,{PLAN}"
    classes = "objectClass: organizationalUnit\nobjectClass: sstProvisioning\n"
    server.add(
        f"dn: {dn}\n{classes}sstProvisioningExecutionDate: 0\nsstProvisioningMode: Snapshot\nsstProvisioningState: 0\n"
    )

    assert len(server.search(PLAN, "(sstProvisioningMode=snapshot)")) == 1
    assert server.search(PLAN, "(sstProvisioningMode=snap*)") == []
    server.delete(dn)


@pytest.mark.parametrize("name", ["base", "node", "machine"])
def test_no_shipped_entry_has_a_password_anybody_could_use(name: str) -> None:
    passwords = re.findall(r"^userPassword:+ (.*)$", (REPOSITORY / f"ldif/{name}.ldif").read_text(), re.MULTILINE)

    assert set(passwords) <= {"{SSHA}!"}


def test_the_password_placeholder_lets_nobody_in(slapd_factory: SlapdFactory) -> None:
    server = slapd_factory(SlapdOptions(synchronous=False))
    server.add((REPOSITORY / "ldif/node.ldif").read_text())

    for password in ("{SSHA}!", "!", "{SSHA}"):
        with pytest.raises(LabError, match=r"Invalid credentials \(49\)"):
            login = ["-x", "-D", TREE.node("node-01.example.org"), "-w", password]
            programs.run(["ldapwhoami", "-H", server.uri, *login])
