"""What faults are played on: one node whose directory is behind a wire and whose backup directory fails as told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.cluster import Lab, LabOptions
from lab.hypervisor import NodeOptions
from lab.slapd import SlapdOptions
from tests.faults.belt import Belt
from tests.faults.faulty_filesystem import faulty_filesystem
from tests.slapd.unreliable_wire import UnreliableWire

_STORE_MIB = 2048


@contextmanager
def stage(folder: Path, start: Callable[[LabOptions], Lab]) -> Iterator[Belt]:
    """An empty belt on a lab of its own; everything is gone afterwards.

    Images and retain directory lie on a filesystem of their own. Agent and controller are less patient than usual.
    """
    told = folder / "told"
    told.mkdir()
    with faulty_filesystem(folder / "backup") as backup:
        node = NodeOptions(store_mib=_STORE_MIB, backup=backup.folder)
        lab = start(LabOptions(nodes=1, machines=0, slapd=SlapdOptions(audit=True, synchronous=False), node=node))
        wire = UnreliableWire(lab.directory.sockets / "wire", lab.directory.socket)
        try:
            [name] = lab.nodes
            belt = Belt(lab, told, _agent_settings(lab, name, wire, folder), wire, backup)
            belt.controller_settings = _controller_settings(lab, wire, folder)
            yield belt
            belt.end_second_agent()
        finally:
            lab.down()
            wire.close()


_SHORT = "timeout_seconds = 2\nprobe_seconds = 2\n"


def _agent_settings(lab: Lab, node: str, wire: UnreliableWire, folder: Path) -> Path:
    text = lab.agent_settings(node).read_text().replace(lab.directory.uri, wire.uri)
    path = folder / "nodeagent.toml"
    path.write_text(text.replace("\n[directory]\n", f"libvirt_seconds = 5\n\n[directory]\n{_SHORT}"))
    return path


def _controller_settings(lab: Lab, wire: UnreliableWire, folder: Path) -> Path:
    text = lab.controller_settings.read_text().replace(lab.directory.uri, wire.uri)
    path = folder / "controller.toml"
    own = "back_off_seconds = 1\nsnapshot_deadline_seconds = 30\n"
    path.write_text(text.replace("\n[directory]\n", f"{own}\n[directory]\n{_SHORT}"))
    return path
