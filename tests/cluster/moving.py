"""Two nodes that see each other's files, agents that can be held, and machines that are moved between them."""

import json
import shutil
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import libvirt

from lab.cluster import Lab
from lab.hypervisor import Node
from lab.machines import Machine, MachineSpec
from lab.processes import stop
from lab.waiting import until
from tests.cluster.plain import Plain
from tests.faults.held_agent import place_of, reached

_ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2])}  # the other namespace begins at its root
_ROOTS = ("image_roots", "allowed_roots", "readable_roots", "writable_roots")
_LIVE = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER
# The paths are the same on both, but libvirt sees no cluster filesystem below them.
_WHOLE = libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE | libvirt.VIR_MIGRATE_UNSAFE


@dataclass
class Moving:
    """The lab, the node machines start on and the one they are moved to."""

    lab: Lab
    folder: Path
    looks_every: float = 30.0  # seconds; agents are woken by leaves that ask for work, not by sstNode
    machines: dict[str, Machine] = field(default_factory=dict)

    @property
    def old(self) -> Node:
        return next(iter(self.lab.nodes.values()))

    @property
    def new(self) -> Node:
        return list(self.lab.nodes.values())[1]

    @property
    def plain(self) -> Plain:
        return Plain(self.lab)

    # agents

    @classmethod
    @contextmanager
    def between(cls, lab: Lab, folder: Path, looks_every: float = 30.0) -> Iterator["Moving"]:
        """A lab of two nodes, with its agents; it is taken down in the end."""
        both = cls(lab, folder, looks_every)
        for node in lab.nodes.values():
            both.start_agent(node)
        yield both
        lab.down()

    def start_agent(self, node: Node) -> None:
        """One that can be held, in its node's view of the filesystem."""
        assert node.reaper is not None
        inside: list[str | Path] = ["nsenter", "--target", str(node.reaper.pid), "--mount"]
        agent: list[str | Path] = [sys.executable, "-m", "tests.faults.held_agent", self.folder]
        self.lab.serve_agent(node.name, [*inside, *agent, "--settings", self._settings(node), "serve"], _ENVIRONMENT)

    def _settings(self, node: Node) -> Path:
        """As the lab writes them, but every agent may use what every node has."""
        texts = [self.lab.agent_settings(name).read_text() for name in self.lab.nodes]
        known = [tomllib.loads(text) for text in texts]
        lines = self.lab.agent_settings(node.name).read_text().splitlines()
        roots = {key: sorted({root for one in known for root in one[key]}) for key in _ROOTS}
        wanted = {key: f"{key} = {json.dumps(value)}" for key, value in roots.items()}
        lines = [wanted.get(line.split(" ")[0], line) for line in lines]
        path = self.folder / f"{node.name}.toml"
        path.write_text("\n".join([f"reconcile_seconds = {self.looks_every}", *lines]) + "\n")
        return path

    @contextmanager
    def held(self, machine: Machine, mode: str, line: str) -> Iterator[None]:
        """Work of the machine in a mode waits after a line of its journal, until the block ends."""
        place = place_of(self.folder, machine.name, mode)
        place.write_text(line)
        try:
            yield
        finally:
            place.unlink(missing_ok=True)
            reached(place).unlink(missing_ok=True)

    def wait_until_held(self, machine: Machine, mode: str) -> None:
        place = place_of(self.folder, machine.name, mode)
        until(f"{machine.name} to be held at {mode}", lambda: reached(place).exists(), 60)

    # what a node sees

    @contextmanager
    def hidden(self, folder: Path) -> Iterator[None]:
        """On the new node another directory lies where a folder of the old one is: empty, and its own."""
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        self._inside(self.new, "mount", "--bind", str(empty), str(folder))
        try:
            yield
        finally:
            self._inside(self.new, "umount", "--lazy", str(folder))

    @staticmethod
    def _inside(node: Node, *command: str) -> None:
        assert node.reaper is not None
        inside = ["nsenter", "--target", str(node.reaper.pid), "--mount", *command]
        subprocess.run(inside, check=True, timeout=20)

    # a node that is lost

    def lose(self, node: Node) -> None:
        """Its power fails: agent, libvirt and guests are gone, and so is what lay in memory."""
        self.lab.kill_agent(node.name)
        node.kill_libvirtd()
        stop(node.processes("qemu-system"), grace=0)
        for folder in (node.ram, node.folder / "run"):
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def boot(self, node: Node) -> None:
        """It is back, with another start of its kernel as far as its agent can see."""
        boot_id = self.folder / f"{node.name}.boot"
        is_first = not boot_id.exists()
        boot_id.write_text(f"{uuid.uuid4()}\n")
        if is_first:
            self._inside(node, "mount", "--bind", str(boot_id), "/proc/sys/kernel/random/boot_id")
        node.restart_libvirtd()
        self.start_agent(node)

    # machines

    def add(self, spec: MachineSpec, method: str = "save") -> Machine:
        machine = self.lab.add_machine(spec, node=self.old.name)
        self.plain.add_backup_subtree(machine.name)
        self.set_plan(machine, vmkeepMethod=method)
        return machine

    def set_plan(self, machine: Machine, **values: str) -> None:
        dn = self.lab.tree.machine_plan(machine.name)
        has_class = "vmkeepPlan" in self.plain.read(dn)["objectClass"]
        own = [] if has_class else ["add objectClass vmkeepPlan"]
        self.plain.modify(dn, *own, *(f"replace {name} {value}" for name, value in values.items()))

    def say(self, machine: Machine, node: Node) -> None:
        """The directory says where the machine is from now on."""
        self.plain.modify(self.plain.machine_dn(machine.name), f"replace sstNode {node.name}")

    def migrate(self, machine: Machine, source: Node, target: Node) -> Machine:
        """A live migration as an admin makes it; the machine as it is afterwards. The directory is not told."""
        where = {libvirt.VIR_MIGRATE_PARAM_URI: "tcp://127.0.0.1"}
        source.domain(machine.name).migrateToURI3(target.uri, where, _LIVE | _WHOLE)
        return replace(machine, node=target)

    @contextmanager
    def on_its_way(self, machine: Machine, seconds: float) -> Iterator[None]:
        """A live migration that has begun when the block does, and takes so long at least; it is over afterwards."""
        domain = self.old.domain(machine.name)
        with ThreadPoolExecutor(max_workers=1) as admin:
            migrating = admin.submit(self._migrate_slowly, machine)
            until("the migration to begin", lambda: domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE, 20, step=0.02)
            yield
            begun = time.monotonic()
            until("the migration to have taken its time", lambda: time.monotonic() - begun > seconds, seconds + 5)
            domain.migrateSetMaxSpeed(1 << 20)
            migrating.result(timeout=60)

    def _migrate_slowly(self, machine: Machine) -> None:
        where = {libvirt.VIR_MIGRATE_PARAM_URI: "tcp://127.0.0.1", libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: 1}
        connection = libvirt.open(self.old.uri)
        try:
            connection.lookupByName(machine.name).migrateToURI3(self.new.uri, where, _LIVE | _WHOLE)
        finally:
            connection.close()

    def define_elsewhere(self, machine: Machine, source: Node, target: Node) -> Machine:
        """A machine that is off, moved by its description."""
        domain = source.domain(machine.name)
        target.connection().defineXML(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        domain.undefine()
        return replace(machine, node=target)

    # leaves

    def snapshotted(self, machine: Machine) -> str:
        """A new leaf, as far as the old node has to do with it."""
        leaf = self.plain.free_timestamp(machine.name)
        self.plain.add_leaf(machine.name, leaf)
        entry = self.plain.step(machine.name, leaf, "snapshot", "snapshotted")
        assert entry["vmkeepSetNode"] == [self.old.name]
        return leaf

    def ask_again(self, machine: Machine, leaf: str, mode: str) -> None:
        """As the controller does with what failed."""
        self.plain.modify(
            self.plain.leaf_dn(machine.name, leaf),
            f"replace sstProvisioningMode {mode}",
            "replace sstProvisioningState 0",
            "replace sstProvisioningReturnValue 0",
        )

    def refused(self, machine: Machine, leaf: str, mode: str, done: str) -> tuple[int, str]:
        """Ask for a step that has to fail; its return value and message."""
        self.ask_again(machine, leaf, mode)
        entry = self.plain.wait(machine.name, leaf, done)
        assert "vmkeepNode" not in entry, "who ends a step lets go of the leaf"
        return int(entry["sstProvisioningReturnValue"][0]), entry["vmkeepMessage"][0]
