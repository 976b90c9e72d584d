"""Every mode that the controller decides on, under every fault of the controller, on a real slapd: a cell each.

The cells are made from the table of modes. A leaf stands in each mode, a fault strikes, and in the end each is where an
undisturbed controller leaves it, written there once.
"""

import base64
import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.services import script
from lab.waiting import until
from tests.slapd.cluster_of_peers import ClusterOfPeers
from tests.slapd.test_controller_restore import devices, disk
from tests.slapd.unreliable_wire import UnreliableWire
from vmkeep.contract.modes import ROWS, Mode, Restart

DECIDED = tuple(mode for mode, row in ROWS.items() if row.restart is Restart.DECIDE)
LEAF, LONG_AGO = "20260101T030000Z", "20260101T031500Z"
# What the controller writes on a leaf: mode, State, ReturnValue; at its end it stands at the last of them.
WRITTEN: dict[Mode, tuple[str, ...]] = {
    Mode.INITIALIZE: ("initialized now 0", "snapshot 0 0"),
    Mode.INITIALIZED: ("snapshot 0 0",),
    Mode.SNAPSHOTTED: ("merge 0 0",),
    Mode.MERGED: ("retain 0 0",),
    Mode.RETAINED: ("finished now 0",),
    Mode.UNRETAINED_SMALL_FILES: (),  # a person decides
    Mode.UNRETAINED_LARGE_FILES: ("restore 0 0",),
    Mode.RESTORED: ("finished now 0",),
    Mode.DELETED: (),  # and it is gone
}
ASKED = (Mode.SNAPSHOT, Mode.UNRETAIN_SMALL_FILES)  # for an agent, a moment ago
RESTORED = Mode.UNRETAINED_LARGE_FILES
MOST_STARTS, LIMIT = 80, 30.0


def machine_of(mode: Mode) -> str:
    return f"m-{mode.lower()}"


@dataclass
class Stage:
    """A leaf in every mode, a wire to the directory, and the settings of a controller that uses the wire."""

    cluster: ClusterOfPeers
    wire: UnreliableWire
    settings: Path
    log: Path
    running: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def prepare(self) -> None:
        """A machine for each mode; the one that is restored is to get another memory and another disk."""
        slapd, tree = self.cluster.slapd, self.cluster.tree
        self.cluster.take_lease_away()
        for found in slapd.search(tree.machines, "(objectClass=*)", "one", "ou"):
            slapd.delete(found["dn"][0])
        self.cluster.add_machines([machine_of(mode) for mode in (*DECIDED, *ASKED)])
        for mode in (*DECIDED, *ASKED):
            state = "0" if mode in ASKED else LONG_AGO
            self.cluster.add_leaf(machine_of(mode), LEAF, mode, state, sstProvisioningReturnValue="0")
        slapd.add(f"dn: {devices(self.cluster, machine_of(RESTORED))}\nobjectClass: organizationalUnit\nou: devices\n")
        slapd.add(disk(self.cluster, "vda", "/var/virtualization/now/vda.qcow2", machine_of(RESTORED)))
        entry = base64.b64encode(self._saved().encode()).decode()
        dn = tree.leaf(machine_of(RESTORED), LEAF)
        slapd.modify(f"dn: {dn}\nchangetype: modify\nadd: vmkeepEntry\nvmkeepEntry:: {entry}\n")

    def _saved(self) -> str:
        name = machine_of(RESTORED)
        machine, *_ = self.cluster.machine_ldif(name, "n1", with_backup=False).split("\n\n")
        machine = machine.replace("sstMemory: 1048576", "sstMemory: 524288").rstrip("\n") + "\n"
        unit = f"dn: {devices(self.cluster, name)}\nobjectClass: organizationalUnit\nou: devices\n"
        then = [
            disk(self.cluster, target, f"/var/virtualization/then/{target}.qcow2", name) for target in ("vda", "vdb")
        ]
        return "\n".join([machine, unit, *then])

    def start(self, *instead: str) -> "subprocess.Popen[bytes]":
        """A controller that serves, or a module of the tests that stands in for it."""
        program = [sys.executable, "-m", *instead] if instead else [str(script("vmkeep-controller"))]
        with self.log.open("ab") as log:
            argv = [*program, "--settings", str(self.settings), "serve"]
            self.running.append(subprocess.Popen(argv, stdout=log, stderr=log))
        return self.running[-1]

    def has_said(self, words: str) -> bool:
        return words in self.log.read_text()

    def is_over(self) -> bool:
        """Whether every leaf is where it belongs."""
        found = {entry["dn"][0]: entry for entry in self.cluster.slapd.search(self.cluster.tree.machines)}
        return all(self._is_over(mode, found) for mode in DECIDED)

    def _is_over(self, mode: Mode, found: dict[str, dict[str, list[str]]]) -> bool:
        leaf = found.get(self.cluster.tree.leaf(machine_of(mode), LEAF))
        if mode is Mode.DELETED:
            return leaf is None
        wanted = WRITTEN[mode][-1].partition(" ")[0] if WRITTEN[mode] else mode
        return leaf is not None and leaf["sstProvisioningMode"] == [wanted]

    def wait(self) -> None:
        until(f"every leaf to be where it belongs, see {self.log}", self.is_over, LIMIT, 0.05)

    def written(self, mode: Mode) -> tuple[str, ...]:
        """What the controller wrote on a leaf, by the directory's own history."""
        lines = self.cluster.transcript(machine_of(mode))
        return tuple(line.removeprefix("controller ") for line in lines if line.startswith("controller "))

    def clear(self) -> None:
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(10)
        self.running.clear()


def killed_around_every_write(stage: Stage) -> None:
    """Again and again, before and after the first write there is to do, until there is none."""
    for number in range(MOST_STARTS):
        process = stage.start("tests.faults.killed_controller", ("before", "after")[number % 2])
        until(
            "it to die, or to have nothing to write", lambda p=process: p.poll() is not None or stage.is_over(), LIMIT
        )
        if stage.is_over():
            return
        assert process.returncode == -signal.SIGKILL, stage.log.read_text()
    raise AssertionError(f"after {MOST_STARTS} starts there was still something to write")


def stopped(stage: Stage) -> None:
    process = stage.start()
    until("the first leaf to move", lambda: stage.cluster.modes(machine_of(Mode.MERGED)) != ["merged"], LIMIT)
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGCONT)


def two_at_once(stage: Stage) -> None:
    stage.start()
    stage.start()


def clock_ahead(stage: Stage) -> None:
    stage.start("tests.faults.erring_controller", "3600")


def clock_behind(stage: Stage) -> None:
    stage.start("tests.faults.erring_controller", "-3600")


def answers_lost(stage: Stage) -> None:
    stage.wire.lose_answers_to_writes(20)
    stage.start()


def slow(stage: Stage) -> None:
    stage.wire.slow = 0.2
    stage.start()


def cut(stage: Stage) -> None:
    _meanwhile(stage, stage.wire.cut, stage.wire.mend)


def directory_killed(stage: Stage) -> None:
    _meanwhile(stage, stage.cluster.slapd.kill, lambda: stage.cluster.slapd.start() and None)


def directory_stopped(stage: Stage) -> None:
    _meanwhile(stage, stage.cluster.slapd.pause, stage.cluster.slapd.unpause)


def read_only(stage: Stage) -> None:
    slapd = stage.cluster.slapd
    _meanwhile(
        stage,
        lambda: slapd.set_database("olcReadOnly", "TRUE"),
        lambda: slapd.set_database("olcReadOnly", "FALSE"),
    )


def _meanwhile(stage: Stage, strike: Callable[[], None], heal: Callable[[], None]) -> None:
    strike()
    try:
        stage.start()
        until("the controller to say that it tries again", lambda: stage.has_said("trying again"), LIMIT)
    finally:
        heal()


FAULTS = (
    killed_around_every_write,
    *(stopped, two_at_once, clock_ahead, clock_behind),
    *(answers_lost, slow, cut, directory_killed, directory_stopped, read_only),
)


@pytest.fixture(scope="module")
def struck(
    cluster_of_peers: ClusterOfPeers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Callable[[Stage], None]], Stage]]:
    """A fault → the stage after it; each strikes once, for all modes."""
    cluster = cluster_of_peers
    seen: list[Callable[[Stage], None]] = []
    wire = UnreliableWire(cluster.slapd.sockets / "wire", cluster.slapd.socket)

    def strike(fault: Callable[[Stage], None]) -> Stage:
        if fault not in seen:
            seen.append(fault)
            stages.append(_made(fault))
            stages[-1].prepare()
            try:
                fault(stages[-1])
                stages[-1].wait()
            finally:
                wire.slow = 0.0
                wire.lose_answers_to_writes(0)
                stages[-1].clear()
        return stages[-1]

    def _made(fault: Callable[[Stage], None]) -> Stage:
        settings = cluster.controller_file(reconcile_seconds=2, snapshot_deadline_seconds=1)
        text = settings.read_text().replace(cluster.slapd.uri, wire.uri).replace("timeout_seconds = 5", "")
        settings.write_text(f"{text}timeout_seconds = 2\nprobe_seconds = 2\n")
        log = tmp_path_factory.mktemp(fault.__name__) / "controller.log"
        log.touch()
        return Stage(cluster, wire, settings, log)

    stages: list[Stage] = []
    yield strike
    wire.close()


def test_every_mode_that_is_decided_on_has_a_cell() -> None:
    assert set(WRITTEN) == set(DECIDED)


@pytest.mark.parametrize("mode", [*DECIDED, *ASKED])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_under_a_fault_every_leaf_is_moved_on_once(
    fault: Callable[[Stage], None], mode: Mode, struck: Callable[[Callable[[Stage], None]], Stage]
) -> None:
    stage = struck(fault)
    assert stage.written(mode) == WRITTEN.get(mode, ())
    assert not stage.has_said("Traceback")
    if mode is RESTORED:
        own = stage.cluster.slapd.search(stage.cluster.tree.machine(machine_of(mode)))
        assert own[0]["sstMemory"] == ["524288"]
        paths = [path for entry in own for path in entry.get("sstSourceFile", [])]
        assert sorted(paths) == ["/var/virtualization/then/vda.qcow2", "/var/virtualization/then/vdb.qcow2"]
    if mode is Mode.RESTORED:
        [leaf] = stage.cluster.leaves(machine_of(mode))
        assert "vmkeepEntry" not in leaf
