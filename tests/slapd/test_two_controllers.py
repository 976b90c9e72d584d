"""Two controllers that serve on a real slapd: one acts; whatever becomes of it, nothing is doubled and nothing lost."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lab.services import script
from lab.waiting import until
from tests.slapd.cluster_of_peers import LIMIT, ClusterOfPeers, Script
from tests.slapd.test_controller_run import TWELVE_STEPS
from tests.slapd.test_controller_schedule import add_planned, names_of_leaves
from tests.slapd.unreliable_wire import UnreliableWire
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.lease import LeaseEntry, read_lease
from vmkeep.directory.port import Store

pytestmark = pytest.mark.usefixtures("emptied")

STRIKES = 20
WRITERS = 3  # the agent, who acts, and a run
TWELVE = [" ".join(line.split()[:2]) for line in TWELVE_STEPS]
FOR_EVER = 3600  # seconds; who takes over before was given the lease, or had it taken away for it


@dataclass
class Controllers:
    """Controllers that serve, by the number of their process; what they say goes to one file each."""

    cluster: ClusterOfPeers
    folder: Path
    store: Store
    running: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    logs: list[Path] = field(default_factory=list)

    def start(self, settings: Path, *instead: str) -> int:
        """One more, or a module of the tests that stands in for it."""
        program = [sys.executable, "-m", *instead] if instead else [str(script("vmkeep-controller"))]
        log = self.folder / f"controller-{len(self.logs)}.log"
        with log.open("wb") as stream:
            argv = [*program, "--settings", str(settings), "serve"]
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        self.logs.append(log)
        self.running[process.pid] = process
        return process.pid

    def said(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)

    def lease(self) -> LeaseEntry:
        entry = read_lease(self.store, self.cluster.tree)
        assert entry is not None
        return entry

    def holder(self) -> int:
        """The process that has the lease; 0 where none has."""
        return int((self.lease().holder or "x:0:x").split(":")[1])

    def wait_for_holder(self, other_than: int = 0) -> int:
        def found() -> int | None:
            holder = self.holder()
            return holder if holder not in (0, other_than) else None

        return until(f"another controller than {other_than} to act, see {self.folder}", found, LIMIT, 0.02)

    def signal(self, pid: int, number: int) -> None:
        self.running[pid].send_signal(number)

    def wait_until_looked(self, log: Path) -> None:
        """Until a controller that was just started has looked at the lease."""
        until(f"it to stand by or to act, see {log}", lambda: re.search("stands by|acts: ", log.read_text()), LIMIT)

    def wait_until_stopped(self, pid: int) -> None:
        stat = Path(f"/proc/{pid}/stat")
        until(f"{pid} to stop, see {self.folder}", lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", LIMIT)

    def end(self, pid: int, number: int) -> int:
        process = self.running.pop(pid)
        process.send_signal(number)
        return process.wait(LIMIT)

    def close(self) -> None:
        for pid in list(self.running):
            with contextlib.suppress(ProcessLookupError):
                self.end(pid, signal.SIGKILL)


@pytest.fixture
def controllers(cluster: ClusterOfPeers, tmp_path: Path) -> Iterator[Controllers]:
    store = cluster.store(cluster.slapd.identities["admin"])
    controllers = Controllers(cluster, tmp_path, store)
    yield controllers
    controllers.close()
    store.close()


@pytest.fixture
def slot() -> datetime:
    return datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=2)


def test_the_lease_is_given_back_at_the_end_and_the_other_goes_on_at_once(
    cluster: ClusterOfPeers, controllers: Controllers, slot: datetime
) -> None:
    settings = cluster.controller_file(lease_seconds=FOR_EVER, holder_name="ctrl")
    play = Script(held={("web", Mode.MERGE)})
    with cluster.peer(play) as peer:
        first = controllers.start(settings)
        assert controllers.wait_for_holder() == first
        second = controllers.start(settings)
        until("the second to stand by", lambda: "stands by: ctrl:" in controllers.said() or None, LIMIT)
        before = controllers.lease().epoch
        add_planned(cluster, ["web"], slot)
        controllers.signal(first, signal.SIGHUP)
        assert controllers.end(first, signal.SIGTERM) == 0
        assert controllers.wait_for_holder() == second
        assert controllers.lease().epoch == before + 1
        cluster.wait_for("web waits for its merge", lambda: cluster.modes("web") == ["merge"])
        play.held.clear()
        peer.wake()
        cluster.wait_for("web is finished", lambda: cluster.modes("web") == ["finished"])
    assert cluster.transcript("web") == TWELVE_STEPS


def test_an_admin_sees_who_acts_and_takes_the_lease_away_from_who_does_not_answer(
    cluster: ClusterOfPeers, controllers: Controllers
) -> None:
    settings = cluster.controller_file(lease_seconds=FOR_EVER, holder_name="ctrl")
    first = controllers.start(settings)
    assert controllers.wait_for_holder() == first
    sentence = rf"ctrl:{first}:\w+ has held the lease since \d{{8}}T\d{{6}}Z, epoch \d+, renewed \d+ s ago"
    console = cluster.settings_file("admin")
    shown = cluster.run("--settings", str(console), "controllers", program="vmkeep")
    assert shown.code == 0, shown
    assert re.match(sentence, shown.out)
    checked = cluster.run("--settings", str(settings), "check")
    assert checked.code == 0, checked
    assert re.search(f"well    {sentence}", checked.out)
    second = controllers.start(settings)
    until("the second to stand by", lambda: "stands by: ctrl:" in controllers.said() or None, LIMIT)
    controllers.signal(first, signal.SIGSTOP)
    cluster.take_lease_away()
    assert controllers.wait_for_holder(first) == second
    controllers.signal(first, signal.SIGCONT)
    until("the first to notice", lambda: f"stands by: ctrl:{second}:" in controllers.said() or None, LIMIT)
    assert controllers.holder() == second
    for pid in (first, second):
        assert controllers.end(pid, signal.SIGTERM) == 0
    assert controllers.holder() == 0
    shown = cluster.run("--settings", str(console), "controllers", program="vmkeep")
    assert (shown.code, shown.out.startswith("no controller holds the lease")) == (3, True)
    told = json.loads(cluster.run("--settings", str(console), "controllers", "--json", program="vmkeep").out)
    assert (told["holder"], told["acts"], told["holds_seconds"]) == (None, False, FOR_EVER)


def test_without_the_entry_the_controller_makes_it_and_begins_above_what_leaves_carry(
    cluster: ClusterOfPeers, controllers: Controllers
) -> None:
    cluster.slapd.delete(cluster.tree.lease)
    cluster.add_machines(["web"])
    cluster.add_leaf("web", "20260101T000000Z", "merged", "20260101T000500Z", vmkeepEpoch="500")
    controllers.start(cluster.controller_file())
    with cluster.peer():
        cluster.wait_for("web is finished", lambda: cluster.modes("web") == ["finished"])
    assert controllers.lease().epoch == 501
    assert cluster.leaves("web")[0]["vmkeepEpoch"] == ["501"]


def test_a_claim_that_was_on_its_way_when_the_lease_changed_hands_is_refused(
    cluster: ClusterOfPeers, controllers: Controllers
) -> None:
    cluster.add_machines(["web"])
    cluster.add_leaf("web", "20260101T000000Z", "snapshot", "0")
    play = Script(held={("web", Mode.SNAPSHOT)})
    hasty = cluster.controller_file(take_up_seconds=0.1, lease_seconds=FOR_EVER)
    with cluster.peer(play) as peer:
        first = controllers.start(hasty, "tests.faults.stopped_controller", "finished")
        controllers.wait_until_stopped(first)  # about to give the snapshot up
        second = controllers.start(cluster.controller_file())
        cluster.take_lease_away()
        assert controllers.wait_for_holder(first) == second
        epoch = controllers.lease().epoch
        cluster.wait_for("web to be marked", lambda: cluster.leaves("web")[0]["vmkeepEpoch"] == [str(epoch)])
        controllers.signal(first, signal.SIGCONT)
        until("the first to stand by", lambda: "stands by" in controllers.logs[0].read_text() or None, LIMIT)
        assert cluster.modes("web") == ["snapshot"], "as it was asked, although the late claim expected just that"
        play.held.clear()
        peer.wake()
        cluster.wait_for("web is finished", lambda: cluster.modes("web") == ["finished"])
    assert cluster.leaves("web")[0]["sstProvisioningReturnValue"] == ["0"]


def test_a_leaf_that_was_on_its_way_when_the_lease_changed_hands_is_taken_away_again(
    cluster: ClusterOfPeers, controllers: Controllers, slot: datetime
) -> None:
    add_planned(cluster, ["late"], slot)
    with cluster.peer():
        first = controllers.start(
            cluster.controller_file(lease_seconds=FOR_EVER), "tests.faults.stopped_controller", "add"
        )
        controllers.wait_until_stopped(first)
        second = controllers.start(cluster.controller_file())
        cluster.take_lease_away()
        assert controllers.wait_for_holder(first) == second
        cluster.wait_for("late is finished", lambda: cluster.modes("late") == ["finished"])
        # As when its time is long over: its set is deleted, and a later one is there.
        cluster.slapd.delete(cluster.tree.leaf("late", to_timestamp(slot)))
        later = to_timestamp(slot + timedelta(minutes=1))
        cluster.add_leaf("late", later, "finished", later)
        controllers.signal(first, signal.SIGCONT)
        until("the late leaf to be removed", lambda: "→ removed (added by a contr" in controllers.said() or None, LIMIT)
    assert names_of_leaves(cluster, "late") == [later]
    late = [move for move in moves(cluster) if move.machine == "late"][len(TWELVE) + 1 :]
    assert [(move.writer, move.mode) for move in late] == [("controller", "initialize")]


def test_a_verdict_that_was_on_its_way_when_the_lease_changed_hands_is_refused(
    cluster: ClusterOfPeers, controllers: Controllers
) -> None:
    """A group that is whole as the first controller sees it, until one of it fails under the second."""
    cluster.add_machines(["db", "web"])
    for name in ("db", "web"):
        own = {"vmkeepGroup": "shop", "vmkeepInstant": "20260101T000000.5Z"}
        cluster.add_leaf(name, "20260101T000000Z", "snapshotted", "20260101T000005Z", **own)
    held = Script({"db": [(Mode.MERGE, 11)]}, {("db", Mode.MERGE), ("web", Mode.MERGE)})
    with cluster.peer(held) as peer:
        first = controllers.start(
            cluster.controller_file(lease_seconds=FOR_EVER), "tests.faults.stopped_controller", "verdict"
        )
        controllers.wait_until_stopped(first)  # about to say that the group is consistent
        second = controllers.start(cluster.controller_file(attempts=0))
        cluster.take_lease_away()
        assert controllers.wait_for_holder(first) == second
        cluster.wait_for("merges to be asked for", lambda: cluster.modes("db") + cluster.modes("web") == ["merge"] * 2)
        held.held.clear()
        peer.wake()
        cluster.wait_for("web is finished", lambda: cluster.modes("web") == ["finished"])
        why = "inconsistent: db failed in merging (return value 11, cannot merge disk images)"
        said = {"db": ["consistent", why], "web": ["consistent", why]}
        cluster.wait_for("the second's verdict", lambda: verdicts(cluster) == said)
        controllers.signal(first, signal.SIGCONT)
        until("the first to stand by", lambda: "stands by" in controllers.logs[0].read_text() or None, LIMIT)
    assert verdicts(cluster) == said, "both are the second's"
    assert "is consistent" not in controllers.logs[0].read_text(), "what nobody was told is not said"


def verdicts(cluster: ClusterOfPeers) -> dict[str, list[str]]:
    """What was written of the groups of machines that are there, one after the other."""
    found: dict[str, list[str]] = {"db": [], "web": []}
    for write in cluster.slapd.history(cluster.tree.machines):
        leaf = re.match(r"ou=20260101T000000Z,ou=backup,sstVirtualMachine=([^,]+),", write["reqDN"][0])
        values = dict(re.findall(r"^(\w+):[+=] (.*)$", "\n".join(write.get("reqMod", [])), re.MULTILINE))
        if leaf and Attribute.GROUP_CONSISTENCY in values:
            found.setdefault(leaf.group(1), []).append(values[Attribute.GROUP_CONSISTENCY])
    return found


class Strikes:
    """One blow after another at whoever acts; each returns when the other has taken over."""

    def __init__(self, controllers: Controllers, settings: Path, wire: UnreliableWire) -> None:
        self.controllers = controllers
        self.settings = settings
        self.wire = wire
        self.seconds: list[float] = []
        self.directory_kills = 0

    def strike(self, number: int) -> None:
        """Killed and stopped in turn, and the directory's own troubles in between."""
        if number % 7 == 3:
            self.wire.lose_answers_to_writes(2)
        if number % 7 == 5:
            self.controllers.cluster.slapd.kill()
            self.controllers.cluster.slapd.start()
            self.directory_kills += 1
        holder = self.controllers.wait_for_holder()
        began = time.monotonic()
        if number % 2:
            self.controllers.signal(holder, signal.SIGSTOP)
        else:
            self.controllers.end(holder, signal.SIGKILL)
            self.controllers.start(self.settings)
        self.controllers.wait_for_holder(holder)
        self.seconds.append(time.monotonic() - began)
        if number % 2:
            self.controllers.signal(holder, signal.SIGCONT)
        else:
            self.controllers.wait_until_looked(self.controllers.logs[-1])


@dataclass(frozen=True)
class Move:
    """A leaf that came into a mode, as the directory wrote it down."""

    machine: str
    writer: str
    mode: str
    epoch: int


def moves(cluster: ClusterOfPeers) -> list[Move]:
    """Every one of the machines there are, in the directory's own order."""
    found, epochs, modes = [], dict[str, int](), dict[str, str]()
    for write in cluster.slapd.history(cluster.tree.machines):
        dn = write["reqDN"][0]
        leaf = re.match(r"ou=\d+T\d+Z,ou=backup,sstVirtualMachine=([^,]+),", dn)
        values = dict(re.findall(r"^(\w+):[+=] (.*)$", "\n".join(write.get("reqMod", [])), re.MULTILINE))
        if write["reqType"] == ["add"]:
            modes.pop(dn, None)
        epochs[dn] = int(values.get(Attribute.EPOCH, epochs.get(dn, 0)))
        mode = values.get(Attribute.MODE, modes.get(dn, ""))
        if leaf and mode != modes.get(dn):
            writer = write["reqAuthzID"][0].partition(",")[0].partition("=")[2]
            found.append(Move(leaf.group(1), "agent" if writer == "n1" else writer, mode, epochs[dn]))
        modes[dn] = mode
    return found


def is_finished(controllers: Controllers, names: list[str]) -> bool:
    leaves = Catalogue(controllers.store, controllers.cluster.tree).standing_leaves()
    return set(names) <= {leaf.machine for leaf in leaves if leaf.mode is Mode.FINISHED}


def test_the_holder_killed_or_stopped_twenty_times_doubles_nothing_and_loses_nothing(
    cluster: ClusterOfPeers, controllers: Controllers, slot: datetime
) -> None:
    wire = UnreliableWire(cluster.slapd.sockets / "wire", cluster.slapd.socket)
    settings = cluster.controller_file(reconcile_seconds=2, lease_seconds=0.6)
    settings.write_text(settings.read_text().replace(cluster.slapd.uri, wire.uri))
    strikes = Strikes(controllers, settings, wire)
    before = controllers.lease().epoch
    names: list[str] = []
    cluster.add_machines(["byhand"])
    try:
        with cluster.peer():
            for _ in range(2):
                controllers.start(settings)
            for number in range(STRIKES):
                wave = [f"m{number}-{one}" for one in range(3)]
                add_planned(cluster, wave, slot)  # whoever takes over looks, and finds them due
                names += wave
                strikes.strike(number)
                if number == STRIKES // 2:
                    by_hand = cluster.start("--settings", str(settings), "run", "byhand")
            until(f"all to be finished, see {controllers.folder}", lambda: is_finished(controllers, names), 60, 0.2)
            ended = cluster.ended(by_hand)
    finally:
        wire.close()
    print("takeovers, seconds:", *(f"{seconds:.2f}" for seconds in strikes.seconds))
    assert ended.code == 0, ended
    assert controllers.lease().epoch >= before + STRIKES
    assert "Traceback" not in controllers.said()
    made = [move for move in moves(cluster) if move.machine in (*names, "byhand")]
    unwritten = 0
    for name in (*names, "byhand"):
        steps = [f"{move.writer} {move.mode}" for move in made if move.machine == name]
        # One that was only added may be taken away and added again.
        steps = [step for step in steps if step != TWELVE[0]]
        assert steps == [step for step in TWELVE[1:] if step in steps], name
        unwritten += len(TWELVE[1:]) - len(steps)
        assert name == "byhand" or names_of_leaves(cluster, name) == [to_timestamp(slot)]
    epochs = [move.epoch for move in made if move.writer == "controller" and move.mode != Mode.INITIALIZE]
    assert unwritten <= WRITERS * strikes.directory_kills, "slapd may die between a write and the history of it"
    assert epochs == sorted(epochs), "a move by who no longer had the lease"
