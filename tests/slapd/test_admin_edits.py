"""The admin's edits of ldif/edits, applied with OpenLDAP's own tools and read back through vmkeep's readers.

Once with the schema that is shipped, and once where the directory came with another and fuller copy of the sst schema.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.slapd import REPOSITORY, Slapd, SlapdOptions
from tests.conftest import SlapdFactory
from vmkeep.contract.leaf import Leaf, Wishes
from vmkeep.contract.modes import ROWS, Actor, Mode, at_work, done, may_move
from vmkeep.contract.names import Attribute, Tree
from vmkeep.contract.plan import is_excluded, resolve
from vmkeep.contract.pruning import hold_of
from vmkeep.contract.retention import Hold
from vmkeep.directory import open_store
from vmkeep.directory.catalogue import Catalogue, Report
from vmkeep.directory.port import Claim
from vmkeep.directory.settings import DirectorySettings

TREE = Tree("dc=example,dc=org")
NODE = "node-01.example.org"
EDITS = REPOSITORY / "ldif/edits"
LEAF = TREE.leaf("machine-01", "20260101T030000Z")
TODAY = date(2026, 11, 21)
LATER = "20261121T031500Z"
MOVES = {
    "merge": (Mode.SNAPSHOTTED, Mode.MERGE),
    "retain": (Mode.MERGED, Mode.RETAIN),
    "merge-again": (Mode.MERGING, Mode.MERGE),
    "retain-again": (Mode.RETAINING, Mode.RETAIN),
    "finish": (Mode.RETAINED, Mode.FINISHED),
    "restore-small-files": (Mode.FINISHED, Mode.UNRETAIN_SMALL_FILES),
    "restore-large-files": (Mode.UNRETAINED_SMALL_FILES, Mode.UNRETAIN_LARGE_FILES),
    "restore-large-files-again": (Mode.UNRETAINING_LARGE_FILES, Mode.UNRETAIN_LARGE_FILES),
    "restore": (Mode.UNRETAINED_LARGE_FILES, Mode.RESTORE),
    "back-out": (Mode.UNRETAINED_SMALL_FILES, Mode.FINISHED),
    "back-out-after-failure": (Mode.RESTORING, Mode.FINISHED),
    "take-back": (Mode.UNRETAIN_SMALL_FILES, Mode.FINISHED),
    "finish-restore": (Mode.RESTORED, Mode.FINISHED),
    "delete-iteration": (Mode.FINISHED, Mode.DELETE),
    "delete-last": (Mode.FINISHED, Mode.DELETE),
}
FAILED = {"back-out-after-failure": 21}
WISHES = {
    "restore-without-state": Wishes(without_state=True),
    "restore-one-disk": Wishes(disks=("vdb",)),
    "keep-old": Wishes(keep_old=True),
    "drop-old": Wishes(),
}
HOLDS = {"hold": Hold("the audit of 2026", datetime(2027, 1, 31, tzinfo=UTC)), "release": None}
OTHERS = {"exclude", "exclude-without-subtree", "include", "backup-now"}
DEMANDED = {"sstOsArchitecture": "x86_64", "sstOsMachine": "pc", "sstClockOffset": "utc"}
MODE_FINISHED = f"{Attribute.MODE}: {Mode.FINISHED}"
FOREIGN_ARC = "1.3.6.1.4.1.22621.1.1.9"


@dataclass(frozen=True)
class Office:
    """A directory with the example machine, and the readers of controller and node on it."""

    server: Slapd
    controller: Catalogue
    node: Catalogue

    def apply(self, edit: str) -> None:
        """What the admin does with one of the files."""
        self.server.modify((EDITS / f"{edit}.ldif").read_text(), self.server.identities["admin"])

    def excluded(self) -> bool:
        machine = self.controller.machine("machine-01")
        assert machine is not None
        return is_excluded(machine.name, self.controller.plan_sources(machine))

    def leaf(self) -> Leaf:
        """The leaf as the node reads it."""
        leaf = self.node.leaf(LEAF)
        assert leaf is not None
        return leaf

    def put_leaf(self, mode: str, return_value: int = 0) -> None:
        """A leaf the controller left in some mode, reached at some time."""
        assert self.controller.add_leaf("machine-01", "20260101T030000Z", LATER)
        change = f"replace: sstProvisioningMode\nsstProvisioningMode: {mode}\n-\n"
        change += f"replace: sstProvisioningReturnValue\nsstProvisioningReturnValue: {return_value}\n"
        self.server.modify(f"dn: {LEAF}\nchangetype: modify\n{change}")


def _fuller_schema(folder: Path) -> Path:
    """The sst schema as other tools ship it: another name, more attributes, and machines that must have more."""
    text = (REPOSITORY / "schema/sst.ldif").read_text()
    text = text.replace("cn=sst,", "cn=original,").replace("cn: sst\n", "cn: original\n")
    attributes = "".join(
        f"olcAttributeTypes: ( {FOREIGN_ARC}0{number} NAME '{name}' EQUALITY caseIgnoreIA5Match\n"
        "   SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 SINGLE-VALUE )\n"
        for number, name in enumerate((*DEMANDED, "sstBackupForeign"))
    )
    text = text.replace("olcObjectClasses:", f"{attributes}olcObjectClasses:", 1)
    text = text.replace("MUST ( sstVirtualMachine $", f"MUST ( {' $ '.join(DEMANDED)} $ sstVirtualMachine $")
    text = text.replace("MAY ( sstBackupRootDirectory $", "MAY ( sstBackupForeign $ sstBackupRootDirectory $")
    assert "MUST ( sstOs" in text
    assert "MAY ( sstBackupForeign" in text
    path = folder / "original.ldif"
    path.write_text(text)
    return path


def _machine(*, fuller: bool) -> str:
    text = (REPOSITORY / "ldif/machine.ldif").read_text()
    more = "".join(f"{name}: {value}\n" for name, value in DEMANDED.items()) if fuller else ""
    return text.replace("sstVCPU: 2\n", f"sstVCPU: 2\n{more}")


@pytest.fixture(scope="module", params=["the shipped schema", "another copy of it"])
def standing(
    request: pytest.FixtureRequest, slapd_factory: SlapdFactory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Office]:
    fuller = request.param == "another copy of it"
    sst = _fuller_schema(tmp_path_factory.mktemp("schema")) if fuller else REPOSITORY / "schema/sst.ldif"
    server = slapd_factory(SlapdOptions(schemas=(sst, REPOSITORY / "schema/vmkeep.ldif"), synchronous=False))
    server.add((REPOSITORY / "ldif/node.ldif").read_text())
    server.add(_machine(fuller=fuller))
    server.give_password("node", TREE.node(NODE))
    stores = [open_store(_settings(server, name)) for name in ("controller", "node")]
    yield Office(server, *(Catalogue(store, TREE) for store in stores))
    for store in stores:
        store.close()


def _settings(server: Slapd, name: str) -> DirectorySettings:
    login = {"bind_dn": server.identities[name].dn, "password_file": server.identities[name].password_file}
    return DirectorySettings.model_validate({"uri": server.uri, "suffix": TREE.suffix, **login})


@pytest.fixture
def office(standing: Office) -> Iterator[Office]:
    """The machine with an ou=backup as the controller makes it, without leaves; gone again afterwards."""
    assert standing.controller.add_backup_subtree("machine-01")
    yield standing
    if standing.controller.store.read(TREE.machine_plan("machine-01")):
        standing.server.delete(TREE.machine_plan("machine-01"))


def test_every_edit_is_tried_here_and_named_in_its_readme() -> None:
    files = {path.stem for path in EDITS.glob("*.ldif")}
    named = set(re.findall(r"`([a-z-]+)\.ldif`", (EDITS / "README.md").read_text()))

    assert files == {*MOVES, *WISHES, *HOLDS, *OTHERS} == named


@pytest.mark.parametrize("edit", MOVES)
def test_an_edit_moves_a_leaf_as_the_protocol_has_it(office: Office, edit: str) -> None:
    before, after = MOVES[edit]
    office.put_leaf(before, FAILED.get(edit, 0))

    office.apply(edit)

    leaf = office.leaf()
    assert leaf.mode is after
    assert leaf.return_value == 0
    assert may_move(before, after)
    assert ROWS[after].writer is not Actor.AGENT
    assert (leaf.state != "0") is ROWS[after].state_is_time
    assert leaf.is_asked(TODAY) is (after is not Mode.FINISHED)


@pytest.mark.parametrize("edit", MOVES)
def test_an_edit_is_refused_when_the_leaf_is_elsewhere(office: Office, edit: str) -> None:
    office.put_leaf(Mode.DELETING)

    with pytest.raises(LabError, match=r"No such attribute \(16\)"):
        office.apply(edit)

    assert office.leaf().mode is Mode.DELETING
    assert office.leaf().state == LATER


@pytest.mark.parametrize("edit", ["finish", "restore-small-files", "finish-restore"])
def test_a_failure_is_neither_finished_nor_restored(office: Office, edit: str) -> None:
    before = MOVES[edit][0]
    office.put_leaf(before, return_value=11)

    with pytest.raises(LabError, match=r"No such attribute \(16\)"):
        office.apply(edit)

    assert office.leaf().mode is before


def test_a_restore_at_work_is_not_backed_out_of(office: Office) -> None:
    office.put_leaf(Mode.RESTORING)

    with pytest.raises(LabError, match=r"No such attribute \(16\)"):
        office.apply("back-out-after-failure")

    assert office.leaf().is_at_work


@pytest.mark.parametrize("by_hand", [False, True], ids=["made by the controller", "made by hand"])
@pytest.mark.parametrize("edit", [*WISHES, "delete-last"])
def test_a_wish_is_set_whether_or_not_the_leaf_has_our_class(office: Office, edit: str, by_hand: bool) -> None:
    if by_hand:
        office.apply("backup-now")
        office.server.modify(f"dn: {LEAF}\nchangetype: modify\nreplace: sstProvisioningMode\n{MODE_FINISHED}\n")
    else:
        office.put_leaf(Mode.FINISHED)

    for _again in range(2 if edit in WISHES else 1):
        office.apply(edit)

    assert office.leaf().wishes == WISHES.get(edit, Wishes(delete_last=True))


@pytest.mark.parametrize("by_hand", [False, True], ids=["made by the controller", "made by hand"])
def test_a_backup_is_held_and_released_whether_or_not_the_leaf_has_our_class(office: Office, by_hand: bool) -> None:
    if by_hand:
        office.apply("backup-now")
    else:
        office.put_leaf(Mode.FINISHED)
    for edit in ("hold", "hold", "release", "release"):
        office.apply(edit)
        assert hold_of(office.leaf()) == HOLDS[edit]


def test_what_was_kept_is_dropped_and_nothing_else(office: Office) -> None:
    office.put_leaf(Mode.FINISHED)
    for edit in ("keep-old", "restore-one-disk", "drop-old"):
        office.apply(edit)

    assert office.leaf().wishes == Wishes(disks=("vdb",))


@pytest.mark.parametrize("edit", ["take-back", "back-out", "back-out-after-failure", "drop-old"])
def test_an_edit_that_ends_something_takes_its_message_away(office: Office, edit: str) -> None:
    office.put_leaf(MOVES.get(edit, (Mode.FINISHED,))[0], FAILED.get(edit, 0))
    assert office.controller.note(office.leaf(), {Attribute.MESSAGE: ["nothing differs"]}) is Claim.WON

    office.apply(edit)

    assert office.leaf().is_good_backup
    assert office.leaf().message == ""


def test_a_restore_finished_by_hand_leaves_nothing_on_the_leaf_but_what_is_kept(office: Office) -> None:
    office.put_leaf(Mode.RESTORED)
    for edit in ("restore-without-state", "restore-one-disk", "keep-old"):
        office.apply(edit)
    left = {Attribute.CONFLICTS: ["[]"], Attribute.ENTRY: ["x"], Attribute.ENTRY_BEFORE: ["x"]}
    assert office.controller.note(office.leaf(), left) is Claim.WON

    office.apply("finish-restore")

    leaf = office.leaf()
    assert leaf.is_good_backup
    assert (leaf.conflicts, leaf.entry, leaf.entry_before, leaf.wishes) == ("", "", "", Wishes(keep_old=True))


def test_a_whole_backup_goes_by_hand(office: Office) -> None:
    """The admin's four edits, and between them what the node's agent says."""
    for edit in ("backup-now", "merge", "retain"):
        office.apply(edit)
        asked = office.leaf()
        assert asked.mode is not None
        assert asked.is_asked(TODAY)
        working = at_work(asked.mode)
        assert office.node.claim(asked, working, Report("0", message="at work")) is Claim.WON
        ended = Report(LATER, extra={Attribute.EXECUTION_TIME: [f"{asked.mode}: 1.000"], Attribute.SIZE: ["7"]})
        assert office.node.claim(office.leaf(), done(working), ended) is Claim.WON

    office.apply("finish")

    assert office.leaf().is_good_backup
    assert (office.leaf().size, office.leaf().message) == (7, "at work")


def test_excluding_and_including_again(office: Office) -> None:
    assert not office.excluded()
    office.apply("include")  # nothing to do
    assert not office.excluded()

    office.apply("exclude")
    assert office.excluded()

    office.apply("include")
    assert not office.excluded()


def test_a_machine_without_subtree_can_be_excluded(office: Office) -> None:
    office.server.delete(TREE.machine_plan("machine-01"))

    office.apply("exclude-without-subtree")

    assert office.excluded()


def test_forgetting_the_subtree_takes_plan_exclusion_and_leaves_and_the_controller_starts_anew(office: Office) -> None:
    office.put_leaf(Mode.FINISHED)
    office.apply("exclude")
    [dn] = re.findall(r'ldapdelete -r [^"]*"([^"]+)"', (EDITS / "README.md").read_text())

    office.server.delete(dn, office.server.identities["admin"])

    machine = office.controller.machine("machine-01")
    assert machine is not None
    assert not machine.has_backup_subtree
    assert not office.excluded()
    assert office.node.leaf(LEAF) is None
    assert office.controller.add_backup_subtree("machine-01")
    assert office.controller.add_leaf("machine-01", "20260101T030000Z", LATER)


def test_the_example_machine_resolves_its_plan_from_pool_and_cluster(office: Office) -> None:
    for reader in (office.controller, office.node):
        machine = reader.machine("machine-01")
        assert machine is not None
        plan = resolve(machine.name, reader.plan_sources(machine))

        assert [disk.target for disk in machine.disks] == ["vda", "vdb"]
        assert (plan.iterations, plan.origins[Attribute.ITERATIONS]) == (2, "pool")
        assert (plan.image_permission, plan.origins[Attribute.IMAGE_PERMISSION]) == (0o660, "cluster")
        assert plan.schedule is not None
        assert (plan.schedule.expression, plan.schedule.active) == ("0 3 * * *", False)


def test_the_files_fit_another_suffix(slapd_factory: SlapdFactory) -> None:
    server = slapd_factory(SlapdOptions(suffix="o=my-company,c=ch", synchronous=False))
    for name in ("node", "machine"):
        server.add(server.shipped(REPOSITORY / f"ldif/{name}.ldif"), server.identities["admin"])

    server.modify(server.shipped(EDITS / "exclude-without-subtree.ldif"), server.identities["admin"])

    assert len(server.search("o=my-company,c=ch", f"({Attribute.EXCLUDE}=*)")) == 2  # the cluster's plan has one too
