"""`vmkeep-controller plan` and `check` on a real slapd: what they print, and that they write nothing."""

from collections.abc import Iterator

import pytest

from lab.slapd import REPOSITORY, SlapdOptions
from tests.conftest import SlapdFactory
from tests.slapd.cluster_of_peers import ClusterOfPeers


@pytest.fixture(scope="module")
def cluster(slapd_factory: SlapdFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOfPeers]:
    cluster = ClusterOfPeers(slapd_factory(SlapdOptions(synchronous=False)), tmp_path_factory.mktemp("peers"))
    cluster.add_node("n1")
    cluster.add_machines(["bare"], with_backup=False)
    cluster.add_machines(["out", "web", "b..d", "busy"])
    cluster.set(cluster.tree.machine_plan("out"), sstBackupExcludeFromBackup="TRUE")
    cluster.add_leaf("busy", "20260101T000000Z", "merged", "20260101T000500Z")
    yield cluster
    cluster.close()


def test_plan_writes_nothing_and_its_output_is_taken_by_ldapadd(
    cluster: ClusterOfPeers, slapd_factory: SlapdFactory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = cluster.context_csn()
    ended = cluster.run("--settings", str(cluster.controller_file()), "plan", "--all")
    assert ended.code == 0, ended
    assert cluster.context_csn() == before != []
    assert "# out: left out: sstBackupExcludeFromBackup is TRUE\n" in ended.out
    assert "# b..d: refused (return value 101): the machine name 'b..d' is not allowed" in ended.out
    assert "# busy: an older leaf is taken on: the leaf 20260101T000000Z" in ended.out
    other = ClusterOfPeers(slapd_factory(SlapdOptions(synchronous=False)), tmp_path_factory.mktemp("other"))
    other.add_node("n1")
    other.add_machines(["bare"], with_backup=False)
    other.add_machines(["out", "web", "b..d", "busy"])
    other.slapd.add(ended.out, other.slapd.identities["controller"])
    assert [other.modes(name) for name in ("bare", "web", "out", "busy")] == [["initialize"], ["initialize"], [], []]


def test_check_tells_what_is_well_and_what_is_missing(
    cluster: ClusterOfPeers, slapd_factory: SlapdFactory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ended = cluster.run("--settings", str(cluster.controller_file()), "check")
    assert ended.code == 0, ended
    assert "MISSING" not in ended.out
    folder = tmp_path_factory.mktemp("bare")
    access = folder / "access.ldif"
    rule = "to * by anonymous auth by * read"
    access.write_text(f"dn: olcDatabase={{1}}mdb,cn=config\nchangetype: modify\nadd: olcAccess\nolcAccess: {rule}\n")
    tree = folder / "base.ldif"
    entries = (REPOSITORY / "ldif/base.ldif").read_text().split("\n\n")
    tree.write_text("\n\n".join(entry for entry in entries if "vmkeepLease" not in entry))
    options = SlapdOptions(schemas=SlapdOptions().schemas[:1], tree=tree, configuration=(access,), synchronous=False)
    bare = ClusterOfPeers(slapd_factory(options), folder)
    ended = bare.run("--settings", str(bare.controller_file()), "check")
    assert ended.code == 1, ended
    assert "MISSING the schema lacks vmkeep" in ended.out


def test_a_directory_that_is_away_gives_one_sentence_and_exit_code_1(cluster: ClusterOfPeers) -> None:
    cluster.slapd.stop()
    ended = cluster.run("--settings", str(cluster.controller_file()), "plan", "--all")
    cluster.slapd.start()
    assert ended.code == 1
    assert ended.err.startswith("vmkeep-controller: ")
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) == 1
