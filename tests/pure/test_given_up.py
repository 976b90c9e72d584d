"""What a snapshot whose node was lost may have left: when nobody can want it any more."""

from pathlib import Path

import pytest

from nodeagent.operations.given_up import given_up
from tests.orders import TIMESTAMP, host_at, order_in
from tests.pure.one_node import TREE, Directory
from vmkeep.contract.leaf import NOT_PUT_BACK
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute, ObjectClass
from vmkeep.directory.catalogue import Catalogue


@pytest.mark.parametrize(
    ("power", "message", "unnoted"),
    [
        (Power.RUNNING, "no sign of life", (TIMESTAMP,)),
        (Power.PAUSED, "no sign of life", (TIMESTAMP,)),
        (Power.OFF, "no sign of life", ()),
        (Power.RUNNING, f"it {NOT_PUT_BACK}", ()),
    ],
)
def test_the_memory_it_left_goes_only_where_the_machine_has_run_on_since(
    tmp_path: Path, power: Power, message: str, unnoted: tuple[str, ...]
) -> None:
    order = order_in(tmp_path, Mode.SNAPSHOTTING, timestamp="20260102T000000Z")
    (Path(order.paths.retain).parent / TIMESTAMP).mkdir(parents=True)
    directory = Directory()
    values = {Attribute.MODE: ("snapshotting",), Attribute.STATE: (TIMESTAMP,), Attribute.RETURN_VALUE: ("108",)}
    classes = ("organizationalUnit", ObjectClass.PROVISIONING)
    directory.add(TREE.machine("vm"), {"objectClass": (ObjectClass.MACHINE,)})
    directory.add(TREE.machine_plan("vm"), {"objectClass": (ObjectClass.BACKUP,)})
    leaf = {"objectClass": classes, "ou": (TIMESTAMP,), Attribute.MESSAGE: (message,), **values}
    directory.add(TREE.leaf("vm", TIMESTAMP), leaf)
    found = given_up(Catalogue(directory, TREE), order, host_at(tmp_path), power)
    assert found == {"abandoned": (TIMESTAMP,), "unnoted": unnoted}
