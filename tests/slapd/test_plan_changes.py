"""When a controller that serves reads machines and plans again: on a real slapd, whatever becomes of the watch."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from controller.lease import Lease
from controller.lookout import Lookout
from controller.places import Places
from controller.plan_changes import PlanChanges
from lab.slapd import Slapd, SlapdOptions
from lab.waiting import until
from tests.conftest import SlapdFactory
from tests.slapd.cluster_of_peers import LIMIT, ClusterOfPeers
from tests.slapd.unreliable_wire import SEARCH, UnreliableWire
from vmkeep.contract.leaf import NOW
from vmkeep.contract.modes import Mode
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory import open_store
from vmkeep.directory.catalogue import Catalogue, Report
from vmkeep.directory.openldap import OpenLdapStore
from vmkeep.directory.port import ANYTHING, Claim, Entry, Filter, Scope, Store, Watcher
from vmkeep.directory.settings import DirectorySettings
from vmkeep.directory.survey import BACKUP_SUBTREES

pytestmark = pytest.mark.usefixtures("emptied")
UTC_ZONE = ZoneInfo("UTC")
BEGUN = datetime(2026, 11, 22, 1, 0, 30, tzinfo=UTC)


class Counting(OpenLdapStore):
    """The store, which counts how often all plans of machines are read; it may watch over another way."""

    reads = 0
    distant: Store | None = None

    def search(
        self, base: str, matching: Filter = ANYTHING, scope: Scope = Scope.SUBTREE, attributes: Sequence[str] = ()
    ) -> Iterator[Entry]:
        self.reads += matching == BACKUP_SUBTREES and base.startswith("ou=virtual machines,")
        return super().search(base, matching, scope, attributes)

    def watch(self, base: str, matching: Filter, wake: Callable[[], None], *, polls: bool = True) -> Watcher:
        watch = self.distant.watch if self.distant else super().watch
        return watch(base, matching, wake, polls=polls)


@dataclass
class Serving:
    """What `serve` keeps of the plans, and a clock that jumps a minute with every look."""

    catalogue: Catalogue
    changes: PlanChanges
    store: Counting
    minutes: int = 0

    def __post_init__(self) -> None:
        self.lookout = Lookout(self.catalogue, UTC_ZONE, self.changes.version)
        self.places = Places(self.catalogue, UTC_ZONE, True, lambda: self.minutes * 60.0, self.changes.version)

    def look(self) -> None:
        """What a minute of `serve` looks at."""
        self.minutes += 1
        self.lookout.look(BEGUN + timedelta(minutes=self.minutes))
        self.places.of(())

    def is_up_to_date(self) -> bool:
        """Whether what is kept is what somebody reads who has just come."""
        self.look()
        fresh = Lookout(self.catalogue, UTC_ZONE)
        fresh.look(BEGUN + timedelta(minutes=self.minutes))
        return self.lookout.tables == fresh.tables and self.places.of(()) == Places(self.catalogue, UTC_ZONE, True).of(
            ()
        )


@pytest.fixture
def settings(cluster: ClusterOfPeers) -> DirectorySettings:
    identity = cluster.slapd.identities["controller"]
    return cluster.settings_of(identity).model_copy(update={"probe_seconds": 0.3, "timeout_seconds": 1})


@pytest.fixture
def counting(settings: DirectorySettings) -> Iterator[Counting]:
    store = Counting(settings)
    yield store
    store.close()


@pytest.fixture
def catalogue(cluster: ClusterOfPeers, counting: Counting) -> Catalogue:
    return Catalogue(counting, cluster.tree)


@pytest.fixture
def serving(cluster: ClusterOfPeers, catalogue: Catalogue, counting: Counting) -> Iterator[Serving]:
    """The plans were read, and the watch is alive."""
    with PlanChanges(counting, cluster.tree) as changes:
        until_watched(changes)
        found = Serving(catalogue, changes, counting)
        found.look()
        yield found


@pytest.fixture(autouse=True)
def filled(cluster: ClusterOfPeers) -> Iterator[None]:
    """Three machines, one with a plan of its own, and the plan of their pool."""
    cluster.add_machines(["a", "b", "c"])
    cluster.set(cluster.tree.machine_plan("b"), sstBackupRootDirectory="file:///of-its-own")
    pool = f"sstVirtualMachinePool=p,{cluster.tree.pools}"
    lines = [f"dn: {pool}", "objectClass: sstVirtualMachines", "sstVirtualMachinePool: p", ""]
    cron = [f"sstCron{name}: *" for name in ("Hour", "Day", "Month", "DayOfWeek")]
    lines += [f"dn: ou=backup,{pool}", "objectClass: organizationalUnit", "objectClass: sstCronObjectClass"]
    lines += ["objectClass: sstVirtualizationBackupObjectClass", "ou: backup", *cron]
    cluster.slapd.add("\n".join([*lines, "sstCronMinute: 59", "sstCronActive: TRUE", ""]))
    yield
    for entry in cluster.slapd.search(cluster.tree.pools, "(objectClass=*)", "one", "sstVirtualMachinePool"):
        cluster.slapd.delete(entry["dn"][0])


def until_watched(changes: PlanChanges) -> None:
    until("the watch to be alive", lambda: changes.is_watched, LIMIT)


def pool_plan(cluster: ClusterOfPeers) -> str:
    return cluster.tree.pool_plan("p")


def modify(cluster: ClusterOfPeers, dn: str, *lines: str) -> None:
    cluster.slapd.modify("\n".join([f"dn: {dn}", *lines, ""]))


def add_cluster_plan(cluster: ClusterOfPeers) -> None:
    """The cluster's plan is there from the start; now it names a root, which says where room is taken."""
    cluster.set(cluster.tree.cluster_plan, sstBackupRootDirectory="file:///elsewhere")


def _exclude(cluster: ClusterOfPeers) -> None:
    cluster.set(cluster.tree.machine_plan("b"), sstBackupExcludeFromBackup="TRUE")


EDITS: dict[str, Callable[[ClusterOfPeers], None]] = {
    "machine added": lambda cluster: cluster.add_machines(["d"]),
    "machine added without a plan": lambda cluster: cluster.add_machines(["d"], with_backup=False),
    "machine deleted": lambda cluster: cluster.slapd.delete(cluster.tree.machine("b")),
    "machine renamed": lambda cluster: modify(
        cluster, cluster.tree.machine("b"), "changetype: modrdn", "newrdn: sstVirtualMachine=z", "deleteoldrdn: 1"
    ),
    "machine moved": lambda cluster: cluster.set(cluster.tree.machine("b"), sstNode="n2"),
    "machine in another pool": lambda cluster: cluster.set(cluster.tree.machine("b"), sstVirtualMachinePool="q"),
    "machine excluded": _exclude,
    "plan deleted": lambda cluster: cluster.slapd.delete(cluster.tree.machine_plan("b")),
    "plan of the pool changed": lambda cluster: cluster.set(pool_plan(cluster), sstCronMinute="7"),
    "pool renamed": lambda cluster: modify(
        cluster,
        pool_plan(cluster).partition(",")[2],
        "changetype: modrdn",
        "newrdn: sstVirtualMachinePool=z",
        "deleteoldrdn: 1",
    ),
    "plan of the pool deleted": lambda cluster: cluster.slapd.delete(pool_plan(cluster)),
    "plan of the cluster changed": add_cluster_plan,
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=[name.replace(" ", "-") for name in EDITS])
def test_whatever_is_done_to_machines_and_plans_is_seen(
    cluster: ClusterOfPeers, serving: Serving, edit: Callable[[ClusterOfPeers], None]
) -> None:
    before, kept, places = serving.changes.version(), dict(serving.lookout.tables), serving.places.of(())
    edit(cluster)
    until("the change to be told of", lambda: serving.changes.version() != before, LIMIT)
    assert serving.is_up_to_date()
    assert (serving.lookout.tables, serving.places.of(())) != (kept, places), "the edit would be seen by nobody"
    assert serving.changes.is_watched


def test_neither_the_lease_nor_leaves_nor_disks_make_plans_be_read_again(
    cluster: ClusterOfPeers, serving: Serving, catalogue: Catalogue
) -> None:
    before, reads, numbers = serving.changes.version(), serving.store.reads, set[str]()
    lease = Lease(catalogue.store, cluster.tree, "me", 30, lambda: serving.minutes * 15.0)
    for _ in range(20):
        assert lease.attend()
        live_through(catalogue, "a", to_timestamp(BEGUN + timedelta(minutes=serving.minutes)))
        serving.look()
        numbers.update(cluster.context_csn())
    disk = f"sstDisk=vda,ou=devices,{cluster.tree.machine('a')}"
    cluster.slapd.add(
        f"dn: ou=devices,{cluster.tree.machine('a')}\nobjectClass: organizationalUnit\nou: devices\n\n"
        f"dn: {disk}\nobjectClass: sstVirtualizationVirtualMachineDisk\nsstDisk: vda\nsstDevice: disk\n"
        "sstTargetBus: virtio\nsstType: file\n"
    )
    cluster.add_node("n3")
    serving.look()
    assert len(numbers) == 20, "each of them moves the directory's change number"
    assert serving.store.reads == reads
    # The server tells in order: when this is heard of, nothing of the above is still to come.
    cluster.set(cluster.tree.machine_plan("a"), sstBackupNumberOfIterations="3")
    until("the change to be told of", lambda: serving.changes.version() != before, LIMIT)
    assert int(serving.changes.version()[0]) == int(before[0]) + 1
    serving.look()
    assert serving.store.reads == reads + 2, "once for the lookout, once for the places"


def live_through(catalogue: Catalogue, machine: str, timestamp: str) -> None:
    """A whole leaf: added, moved and deleted."""
    assert catalogue.add_leaf(machine, timestamp, timestamp)
    dn = catalogue.tree.leaf(machine, timestamp)
    for mode, state in ((Mode.SNAPSHOT, NOW), (Mode.SNAPSHOTTING, NOW), (Mode.FINISHED, timestamp)):
        leaf = catalogue.leaf(dn)
        assert leaf
        assert catalogue.claim(leaf, mode, Report(state)) is Claim.WON
    leaf = catalogue.leaf(dn)
    assert leaf
    assert catalogue.remove(leaf)


def test_a_plan_edited_while_the_watch_is_cut_off_is_seen_at_the_next_look(
    cluster: ClusterOfPeers, settings: DirectorySettings, catalogue: Catalogue, counting: Counting, tmp_path: Path
) -> None:
    wire = UnreliableWire(tmp_path / "wire", cluster.slapd.socket)
    counting.distant = open_store(settings.model_copy(update={"uri": wire.uri}))
    with PlanChanges(counting, cluster.tree) as changes:
        until_watched(changes)
        serving = Serving(catalogue, changes, counting)
        serving.look()
        wire.cut()
        until("the cut to be noticed", lambda: not changes.is_watched, LIMIT)
        _exclude(cluster)
        assert serving.is_up_to_date()
        wire.mend()
        until_watched(changes)
        assert serving.is_up_to_date()
        wire.silent.set()  # now the connection dies without a word
        cluster.set(cluster.tree.machine_plan("a"), sstBackupExcludeFromBackup="TRUE")
        until("the silence to be noticed", serving.is_up_to_date, LIMIT)
        wire.silent.clear()
    counting.distant.close()
    wire.close()


def test_a_server_that_was_killed_between_two_looks_makes_plans_be_read_again(
    cluster: ClusterOfPeers, serving: Serving
) -> None:
    for minute in ("11", "12"):
        before = serving.changes.version()
        assert before
        cluster.slapd.kill()
        until("the end to be noticed", lambda: not serving.changes.is_watched, LIMIT)
        cluster.slapd.start()
        cluster.set(pool_plan(cluster), sstCronMinute=minute)
        assert serving.is_up_to_date(), "whether it is watched again by now or not"
        until_watched(serving.changes)
        assert serving.changes.version() != before
        assert serving.is_up_to_date()


def test_a_change_that_nobody_was_told_of_is_read_after_a_quarter_of_an_hour(
    cluster: ClusterOfPeers, counting: Counting
) -> None:
    elapsed = [100_000.0]
    with PlanChanges(counting, cluster.tree, lambda: elapsed[0]) as changes:
        until_watched(changes)
        before = changes.version()
        elapsed[0] += 900
        assert changes.version() != before


def test_before_and_after_the_watch_nobody_can_tell(cluster: ClusterOfPeers, counting: Counting) -> None:
    changes = PlanChanges(counting, cluster.tree)
    assert changes.version() == ()
    with changes:
        until_watched(changes)
        assert changes.version()
    assert changes.version() == ()


@pytest.fixture(scope="module")
def plain_server(slapd_factory: SlapdFactory) -> Slapd:
    """One without syncprov."""
    return slapd_factory(SlapdOptions(synchronous=False, watchable=False))


def test_a_server_that_cannot_notify_is_not_asked_all_the_time_and_plans_are_read_at_each_look(
    plain_server: Slapd, tmp_path: Path
) -> None:
    plain = ClusterOfPeers(plain_server, tmp_path)
    plain.add_machines(["a"])
    wire = UnreliableWire(tmp_path / "wire", plain_server.socket)
    identity = plain_server.identities["controller"]
    store = Counting(plain.settings_of(identity).model_copy(update={"uri": wire.uri, "poll_seconds": 0.05}))
    catalogue = Catalogue(store, plain.tree)
    with PlanChanges(store, plain.tree) as changes:
        until("the watch to be refused", lambda: SEARCH in wire.seen, LIMIT)
        with pytest.raises(Exception, match="in vain"):
            until("it to ask again", lambda: wire.seen.count(SEARCH) > 1, 0.5)
        serving = Serving(catalogue, changes, store)
        serving.look()
        reads = store.reads
        serving.look()
        assert store.reads == reads + 2
        plain.set(plain.tree.machine("a"), sstNode="n2")
        assert serving.is_up_to_date()
    store.close()
    wire.close()


def test_serve_reads_plans_once_and_after_each_edit_though_it_renews_its_lease(cluster: ClusterOfPeers) -> None:
    file = cluster.controller_file(lease_seconds=1)
    file.write_text(f'{file.read_text()}[logs]\nlevel = "debug"\n')
    command = [sys.executable, "-m", "tests.faults.hasty_controller", "--settings", str(file), "serve"]
    said = file.with_suffix(".log")
    with said.open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        until("the first reading", lambda: "read all machines" in said.read_text(), LIMIT)
        wait_for_renewals(cluster, 2)
        settled = said.read_text().count("read all machines")
        assert settled <= 2, "once, and once more when the watch is there"
        wait_for_renewals(cluster, 4)
        assert said.read_text().count("read all machines") == settled
        _exclude(cluster)
        until("the plans to be read again", lambda: said.read_text().count("read all machines") > settled, LIMIT)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT)
        assert "Traceback" not in said.read_text()


def wait_for_renewals(cluster: ClusterOfPeers, number: int) -> None:
    """With each renewal `serve` wakes, and by its hasty clock another minute has begun."""
    versions: set[str] = set()

    def renewed() -> bool:
        [entry] = cluster.slapd.search(cluster.tree.lease, "(objectClass=*)", "base", "vmkeepLeaseVersion")
        versions.update(entry.get("vmkeepLeaseVersion", []))
        return len(versions) > number

    until(f"{number} renewals of the lease", renewed, LIMIT)
