"""Only what an earlier backup of this very machine can have left is taken for an unfinished merge of it."""

from pathlib import Path
from typing import Any

import pytest

from nodeagent.host.images import Images
from nodeagent.operations.survey import Rules, Surveyor
from nodeagent.order import Order
from nodeagent.steps import Host
from nodeagent.unretained import Unretained
from tests import crafted_images
from tests.orders import disk_in, order_in
from tests.pure.restored_machine import PLACES
from vmkeep.contract.errors import Refused
from vmkeep.contract.modes import Mode

EARLIER = "20250101T000000Z"


@pytest.fixture
def order(tmp_path: Path) -> Order:
    (tmp_path / "images").mkdir()
    return order_in(tmp_path, Mode.SNAPSHOTTING, disks=(disk_in(tmp_path),))


def look(folder: Path, order: Order, backing: str) -> None:
    """As the survey does, at an image over this file."""
    nothing: Any = None
    host = Host("n1", nothing, Images(), [str(folder)], {}, Unretained(folder / "notes"))
    rules = Rules((str(folder),), (str(folder),), (), str(folder), PLACES)
    image = crafted_images.naming(crafted_images.plain(folder), backing.encode())
    Path(order.disks[0].path).write_bytes(image)
    Surveyor(nothing, host, rules)._checked_image(order, order.disks[0])


def test_an_image_over_an_earlier_backup_is_finished_first(tmp_path: Path, order: Order) -> None:
    look(tmp_path, order, f"{order.paths.retain.parent}/{EARLIER}/d.qcow2")


@pytest.mark.parametrize(
    "below",
    ["../d.qcow2", f"{EARLIER}/..", "x/d.qcow2", f"{EARLIER}/x/d.qcow2", f"../vm/{EARLIER}/d.qcow2", "d.qcow2"],
)
def test_an_image_over_anything_else_is_refused(tmp_path: Path, order: Order, below: str) -> None:
    with pytest.raises(Refused, match="no earlier backup of ours"):
        look(tmp_path, order, f"{order.paths.retain.parent}/{below}")
