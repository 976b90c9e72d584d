"""A retain whose set was published by an attempt that did not live to say so."""

import json
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from nodeagent.host.errors import HostFailure
from nodeagent.operations.retain import retain
from nodeagent.order import Order
from nodeagent.steps import Facts
from tests.orders import TIMESTAMP, host_at, order_in
from vmkeep.contract.machine import Power
from vmkeep.contract.manifest import Manifest, SetFile
from vmkeep.contract.modes import Mode

FILE = SetFile(name=f"vm.xml.{TIMESTAMP}", role="xml", size=12, digest="blake3:" + "0" * 64)
MANIFEST = Manifest(
    machine="vm",
    uuid="u",
    timestamp=TIMESTAMP,
    node="n1",
    power=Power.RUNNING,
    method="save",
    consistency="state",
    files=(FILE,),
    versions={},
)


@pytest.fixture
def order(tmp_path: Path) -> Order:
    for name in ("retain", "backup"):
        (tmp_path / name).mkdir()
    order = order_in(tmp_path, Mode.RETAINING, power=Power.OFF, disks=(), published=True)
    Path(order.paths.backup).mkdir(parents=True)
    return order


def carried_out(order: Order, folder: Path) -> Facts:
    host = host_at(folder)
    facts: dict[str, Any] = {}
    for step in retain(order, host):
        facts |= step.apply(facts)
    return facts


def manifest_of(order: Order) -> Path:
    return Path(order.paths.backup) / f"manifest.json.{TIMESTAMP}"


def test_its_size_consistency_and_manifests_digest_are_told_all_the_same(order: Order, tmp_path: Path) -> None:
    manifest_of(order).write_text(MANIFEST.to_json())
    facts = carried_out(order, tmp_path)
    assert (facts["size"], facts["consistency"]) == (12, "state")
    assert facts["manifest_digest"] == f"blake3:{blake3(MANIFEST.to_json().encode()).hexdigest()}"


def test_a_manifest_that_cannot_be_read_is_no_success(order: Order, tmp_path: Path) -> None:
    manifest_of(order).write_text(json.dumps({"machine": "vm"}))
    with pytest.raises(HostFailure, match="has a manifest that cannot be read"):
        carried_out(order, tmp_path)
