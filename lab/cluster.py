"""A whole cluster on one machine: the class behind `python -m lab`, for tests, demo and benchmarks.

with Lab(folder, LabOptions(nodes=2, machines=2, agents=True)) as lab:
    lab.directory.search(...); lab.nodes["node-01.lab.example"].domain("vm-0001"); lab.machines["vm-0001"].serial
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from lab import guest_image, record, services, settings_files, ticks, tree
from lab.errors import LabError
from lab.hypervisor import Node, NodeOptions
from lab.machines import Machine, MachineSpec, create_images, domain_xml, plan_machine
from lab.processes import Process, identify, stop
from lab.slapd import Slapd, SlapdOptions
from lab.waiting import until
from vmkeep.contract.names import Tree

_MADE = ("directory", "nodes", "boot", "log", "controller.toml", "vmkeep.toml", "lab.json")


@dataclass(frozen=True)
class LabOptions:
    """How big a lab is. `machine` is what each of the first `machines` is like; more can be added later."""

    nodes: int = 1
    machines: int = 1
    machine: MachineSpec = field(default_factory=MachineSpec)
    agents: bool = False
    controller: bool = False
    slapd: SlapdOptions = field(default_factory=SlapdOptions)
    node: NodeOptions = field(default_factory=NodeOptions)
    boot_limit: float = 180

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.machines < 0:
            raise LabError(
                f"a lab has one node or more and no negative number of machines, not {self.nodes}, {self.machines}"
            )


class Lab:
    """One lab in one folder. A context manager: `up` on entry, `down` at the end, whatever happened."""

    def __init__(self, folder: Path, options: LabOptions | None = None) -> None:
        self.folder = folder.resolve()
        self.options = options or LabOptions()
        self.directory = Slapd(self.folder / "directory", self.options.slapd)
        self.tree = Tree(self.options.slapd.suffix)
        names = [f"node-{number:02d}.lab.example" for number in range(1, self.options.nodes + 1)]
        self.nodes = {name: Node(name, self.folder / "nodes" / name, self.options.node) for name in names}
        self.machines: dict[str, Machine] = {}
        self._record = record.Record(self.folder)
        self._images: dict[bool, guest_image.GuestImage] = {}

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_reason: object) -> None:
        self.down()

    def up(self) -> None:
        """Start everything; returns when every machine is up. What was started is taken down again when it fails."""
        self._take_folder()
        try:
            self._start_directory()
            self._start_nodes()
            self.add_machines([self.options.machine] * self.options.machines)
            self._start_services()
            self.write_description()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End everything and remove every file that is the lab's."""
        for node in self.nodes.values():
            node.close()
        record.end_processes(self._record)
        record.give_back(self._record)

    def add_machine(self, spec: MachineSpec | None = None, name: str | None = None, node: str | None = None) -> Machine:
        """One more machine, on the next node unless one is named; returns when it is up."""
        machine = self._prepare(spec or self.options.machine, name, node)
        self._start(machine)
        self._wait_up(machine)
        self.write_description()
        return machine

    def add_machines(self, specs: list[MachineSpec]) -> list[Machine]:
        """Several machines, spread round robin, booting side by side."""
        machines = [self._prepare(spec, None, None) for spec in specs]
        for machine in machines:
            self._start(machine)
        for machine in machines:
            self._wait_up(machine)
        return machines

    def domain(self, machine: str) -> Any:
        """The libvirt domain of a machine."""
        return self.machines[machine].node.domain(machine)

    def wait_for_count(self, machine: str, more: int = 1, limit: float = 60) -> int:
        """Return the newest count on the serial log when the guest has counted `more` times from now."""
        serial = self.machines[machine].serial
        target = ticks.last_count(serial) + more
        reached = f"{machine} to count to {target}, see {serial}"
        return until(reached, lambda: now if (now := ticks.last_count(serial)) >= target else None, limit)

    def agent_settings(self, node: str) -> Path:
        """The settings file of a node's agent."""
        return self.nodes[node].folder / "nodeagent.toml"

    @property
    def controller_settings(self) -> Path:
        """The settings file of the controller."""
        return self.folder / "controller.toml"

    @property
    def console_settings(self) -> Path:
        """The settings file of the admin's command line."""
        return self.folder / "vmkeep.toml"

    def start_agent(self, node: str, *arguments: str) -> Process:
        """Start a node's agent; returns when it is ready."""
        command: list[str | Path] = [
            services.script("vmkeep-nodeagent"),
            "--settings",
            self.agent_settings(node),
            "serve",
            *arguments,
        ]
        return self.serve_agent(node, command)

    def serve_agent(
        self, node: str, command: list[str | Path], environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start what stands in for a node's agent, known as one afterwards; returns when it is ready."""
        log = self.nodes[node].folder / "log/nodeagent.log"
        return self._serve(f"nodeagent {node}", command, log, environment)

    def stop_agent(self, node: str) -> None:
        """Ask a node's agent to end, and wait for it."""
        self._end(f"nodeagent {node}", grace=20)

    def kill_agent(self, node: str) -> None:
        """End a node's agent as a crash would."""
        self._end(f"nodeagent {node}", grace=0)

    def start_controller(self, *arguments: str) -> Process:
        """Start the controller; returns when it is ready."""
        command: list[str | Path] = [
            services.script("vmkeep-controller"),
            "--settings",
            self.controller_settings,
            "serve",
            *arguments,
        ]
        return self.serve_controller(command)

    def serve_controller(self, command: list[str | Path], environment: Mapping[str, str] | None = None) -> Process:
        """Start what stands in for the controller; returns when it is ready."""
        return self._serve("controller", command, self.folder / "log/controller.log", environment)

    def stop_controller(self) -> None:
        """Ask the controller to end, and wait for it."""
        self._end("controller", grace=20)

    def kill_controller(self) -> None:
        """End the controller as a crash would."""
        self._end("controller", grace=0)

    def kill_qemu(self, machine: str) -> None:
        """End a machine's QEMU as a crash would."""
        if (process := self.machines[machine].node.qemu(machine)) is not None:
            stop([process], grace=0)

    def kill_directory(self) -> None:
        """End slapd as a crash would."""
        self._end("slapd", grace=0)

    def stop_directory(self) -> None:
        """Stop slapd."""
        self._end("slapd", grace=10)

    def start_directory(self) -> None:
        """Start slapd again."""
        self.directory.start(self._record.note_process)
        self._describe_again()

    def processes(self) -> list[Process]:
        """Every process of the lab that runs, its guests among them."""
        known = [process for process in self._record.processes.values() if process.alive]
        for node in self.nodes.values():
            known += [
                replace(p, name=f"libvirtd {node.name}") for p in node.processes("libvirtd") if p == node.libvirtd
            ]
        for machine in self.machines.values():
            if (guest := machine.node.qemu(machine.name)) is not None:
                known.append(replace(guest, name=f"qemu {machine.name}"))
        return known

    def description(self) -> dict[str, Any]:
        """What lab.json says."""
        identities = {
            name: {"dn": identity.dn, "password_file": str(identity.password_file)}
            for name, identity in self.directory.identities.items()
        }
        return {
            "directory": {"uri": self.directory.uri, "suffix": self.directory.suffix, "identities": identities},
            "controller": {"settings": str(self.controller_settings)},
            "nodes": [self._describe_node(node) for node in self.nodes.values()],
            "machines": [_describe_machine(machine) for machine in self.machines.values()],
            "processes": [{"name": process.name, "pid": process.pid} for process in self.processes()],
        }

    def write_description(self) -> None:
        """Write lab.json."""
        temporary = self.folder / "lab.json.new"
        temporary.write_text(json.dumps(self.description(), indent=2) + "\n")
        temporary.replace(self.folder / "lab.json")

    def _describe_again(self) -> None:
        """Keep the processes in lab.json true; there is none before `up` has ended."""
        if (self.folder / "lab.json").exists():
            self.write_description()

    def _take_folder(self) -> None:
        if record.read(self.folder) is not None:
            raise LabError(
                f"there is a lab in {self.folder} already; end it with: python -m lab down --dir {self.folder}"
            )
        in_the_way = [name for name in _MADE if (self.folder / name).exists()]
        if in_the_way:
            raise LabError(
                f"{self.folder} holds {', '.join(in_the_way)} already, which is not a lab's; choose another folder"
            )
        made = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        created = [self.folder / name for name in (*_MADE, "lab.json.new")]
        backup = self.options.node.backup
        if backup is not None and not backup.exists():
            created.append(backup)
        nodes = [node.folder for node in self.nodes.values()]
        self._record = record.Record(self.folder, made, nodes=nodes, created=created)
        self._record.write()
        (self.folder / "log").mkdir()

    def _start_directory(self) -> None:
        self.directory.folder.mkdir(mode=0o700)
        self.directory.create(self._record.note_process)
        self.directory.modify(tree.without_cluster_paths(self.tree))
        for node in self.nodes.values():
            self.directory.add(tree.node_entries(self.tree, node))
            self.directory.give_password(node.name, self.tree.node(node.name))
        settings_files.write_controller_settings(self.folder, self.directory)
        settings_files.write_console_settings(self.folder, self.directory)

    def _start_nodes(self) -> None:
        for node in self.nodes.values():
            node.create()
            self._record.note_process(node.start())
            settings_files.write_agent_settings(node, self.directory)
        for node in self.nodes.values():
            node.wait_ready()

    def _start_services(self) -> None:
        for name in self.nodes if self.options.agents else ():
            self.start_agent(name)
        if self.options.controller:
            self.start_controller()

    def _prepare(self, spec: MachineSpec, name: str | None, node: str | None) -> Machine:
        number = len(self.machines)
        place = self.nodes[node] if node else list(self.nodes.values())[number % len(self.nodes)]
        machine = plan_machine(name or f"vm-{number + 1:04d}", place, spec)
        if machine.name in self.machines:
            raise LabError(f"the lab has a machine {machine.name} already")
        create_images(machine)
        self.machines[machine.name] = machine
        image = self._guest_image(agent=spec.agent) if spec.kind == "linux" else None
        place.connection().defineXML(domain_xml(machine, image))
        self.directory.add(tree.machine_entries(self.tree, machine))
        return machine

    def _start(self, machine: Machine) -> None:
        if machine.spec.state != "off":
            self.domain(machine.name).create()

    def _wait_up(self, machine: Machine) -> None:
        if machine.spec.state == "off":
            return
        if machine.spec.kind == "linux":
            self.wait_for_count(machine.name, limit=self.options.boot_limit)
        if machine.spec.state == "paused":
            self.domain(machine.name).suspend()

    def _guest_image(self, *, agent: bool) -> guest_image.GuestImage:
        """Kernel and initramfs, copied into the lab: running machines must not depend on the cache."""
        if agent not in self._images:
            built = guest_image.build(agent=agent)
            boot = self.folder / "boot"
            boot.mkdir(exist_ok=True)
            kernel, initramfs = (Path(shutil.copy(path, boot / path.name)) for path in (built.kernel, built.initramfs))
            self._images[agent] = guest_image.GuestImage(kernel, initramfs)
        return self._images[agent]

    def process(self, name: str) -> Process | None:
        """One of the lab's daemons that runs: `slapd`, `controller`, `nodeagent NODE`."""
        process = self._record.processes.get(name)
        return process if process is not None and process.alive else None

    def _serve(
        self, name: str, command: list[str | Path], log: Path, environment: Mapping[str, str] | None = None
    ) -> Process:
        running = self._record.processes.get(name)
        if running is not None and running.alive:
            raise LabError(f"{name} runs already, pid {running.pid}")
        process = services.serve(name, command, log, self._record.note_process, environment)
        self._describe_again()
        return process

    def _end(self, name: str, grace: float) -> None:
        process = self._record.processes.get(name)
        if process is not None:
            stop([process], grace)
            self._record.forget_process(name)
            self._describe_again()

    def _describe_node(self, node: Node) -> dict[str, str]:
        return {
            "name": node.name,
            "libvirt_uri": node.uri,
            "settings": str(self.agent_settings(node.name)),
            "images": str(node.images),
            "retain": str(node.retain),
            "backup": str(node.backup),
            "ram": str(node.ram),
        }


def _describe_machine(machine: Machine) -> dict[str, Any]:
    return {
        "name": machine.name,
        "node": machine.node.name,
        "kind": machine.spec.kind,
        "disks": [str(path) for path in machine.disks],
        "serial": str(machine.serial),
    }


def take_down(folder: Path) -> bool:
    """End the lab in a folder, however much of it is left; False where there is none."""
    found = record.read(folder.resolve())
    if found is None:
        return False
    record.end_processes(found)
    record.give_back(found)
    return True


def status(description: dict[str, Any]) -> list[tuple[str, ...]]:
    """Lines for people: every process and machine of a lab.json, and whether it is there."""
    rows: list[tuple[str, ...]] = []
    for process in description["processes"]:
        found = identify(process["name"], process["pid"])
        rows.append(("process", process["name"], str(process["pid"]), "runs" if found and found.alive else "gone"))
    for machine in description["machines"]:
        count = ticks.last_count(Path(machine["serial"]))
        rows.append(("machine", machine["name"], machine["node"], f"count {count}" if count else machine["kind"]))
    return rows
