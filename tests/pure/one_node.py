"""A node's workers over a real journal: the directory is in memory, and libvirt has no verbs at all."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog

from lab.waiting import until
from nodeagent.assembly import assemble
from nodeagent.cycle import Agent
from nodeagent.order import Order
from nodeagent.runner import Patience
from nodeagent.steps import Facts, Host, Step
from nodeagent.work import Workshop
from tests.pure.test_runner import ORDER
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.memory import MemoryStore
from vmkeep.directory.port import ANYTHING, Attributes, Claim, Filter
from vmkeep.directory.settings import DirectorySettings
from vmkeep.service.settings import NodeAgentSettings

TREE = Tree("dc=example,dc=org")
DN = TREE.leaf(ORDER.machine, ORDER.timestamp)
KEY = (ORDER.machine, ORDER.timestamp, ORDER.mode)


class Directory(MemoryStore):
    """One whose access rules are wrong for some entries: it refuses to change what is `closed`."""

    def __init__(self) -> None:
        super().__init__(TREE.machines)
        self.closed: set[str] = set()

    def claim(
        self,
        dn: str,
        expected: Mapping[str, str],
        changes: Attributes,
        additions: Attributes | None = None,
        provided: Filter = ANYTHING,
    ) -> Claim:
        if dn in self.closed:
            raise Refused(ReturnValue.CANNOT_CONNECT_TO_BACKEND, f"{dn}: no write access")
        return super().claim(dn, expected, changes, additions, provided)


class Gate:
    """A merge of one step that counts half its bytes and waits until it is let through."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.waiting: set[str] = set()

    def plan(self, order: Order, host: Host) -> tuple[Step, ...]:
        def apply(_facts: Facts) -> Facts:
            host.progress(order.bytes_total // 2)
            self.waiting.add(order.machine)
            assert self.open.wait(20)
            return {}

        return (Step("wait", "wait", ReturnValue.CANNOT_MERGE, apply),)


def workshop(tmp_path: Path) -> Workshop:
    """A node's own, but for the directory, which is in memory, and a libvirt that has no verbs at all."""
    directory = DirectorySettings(uri="ldapi:///", suffix=TREE.suffix)
    settings = NodeAgentSettings(
        node="n1", directory=directory, state_directory=str(tmp_path), allowed_roots=("/tmp",), image_roots=("/i",)
    )
    shop = assemble(settings, lambda: None).shop
    catalogue = Catalogue(Directory(), TREE)
    no_libvirt: Any = SimpleNamespace()
    moves = replace(shop.host.moves, catalogue=catalogue)
    turns = replace(shop.host.turns, catalogue=catalogue)
    host = replace(shop.host, hypervisor=no_libvirt, moves=moves, turns=turns)
    return replace(
        shop,
        catalogue=catalogue,
        host=host,
        surveyor=replace(shop.surveyor, catalogue=catalogue, host=host),
        patience=Patience(0.01, 3),
        log=structlog.wrap_logger(None, processors=[_drop]),
    )


def _drop(_logger: object, _name: str, _event: object) -> Any:
    raise structlog.DropEvent


def add_leaf(shop: Workshop, mode: str, machine: str = ORDER.machine) -> Leaf:
    """A machine of this node, its plan, and a leaf that asks for something."""
    store, roots, dn = shop.catalogue.store, ("file:///tmp",), TREE.leaf(machine, ORDER.timestamp)
    store.add(
        TREE.machine(machine),
        {"objectClass": (ObjectClass.MACHINE,), Attribute.MACHINE: (machine,), Attribute.NODE: ("n1",)},
    )
    plan = {Attribute.BACKUP_ROOT: roots, Attribute.RETAIN_ROOT: roots}
    store.add(TREE.machine_plan(machine), {"objectClass": (ObjectClass.BACKUP,), **plan})
    modes = {Attribute.MODE: (mode,), Attribute.STATE: ("0",), Attribute.EXECUTION_DATE: ("0",)}
    store.add(dn, {"objectClass": ("organizationalUnit", ObjectClass.PROVISIONING), **modes})
    leaf = shop.catalogue.leaf(dn)
    assert leaf is not None
    return leaf


def turn_until(agent: Agent, what: str, check: Any) -> None:
    def turn() -> bool:
        agent.cycle()
        return bool(check())

    until(what, turn, 10)


def told(shop: Workshop, machine: str = ORDER.machine) -> tuple[int, str, str]:
    leaf = shop.catalogue.leaf(TREE.leaf(machine, ORDER.timestamp))
    assert leaf is not None
    return leaf.return_value, leaf.raw_mode, leaf.message
