"""Row `sets`: what lies in a backup root of many sets, against reading the same manifests with json.loads alone."""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from blake3 import blake3

from bench.alternating import in_turn
from bench.figures import Figure, ratios, spread
from bench.session import Session
from lab.errors import LabError
from vmkeep.console.sets import find
from vmkeep.contract.machine import Power
from vmkeep.contract.manifest import Manifest, SetFile
from vmkeep.contract.methods import Method

_BAR = 4.0  # each level is opened without following links, each manifest checked and digested; the twin does neither
_SETS_EACH = 10
_ROLES = (("state", "state"), ("xml", "xml"), ("ldif", "ldif"), ("disk", "vda.qcow2"), ("disk", "vdb.qcow2"))


def measure(session: Session) -> Iterator[Figure]:
    """One figure; needs no lab."""
    count = session.choose(1000, 100)
    session.say(f"sets: {count} of them")
    for number in range(count):
        _make(session.folder, f"machine-{number // _SETS_EACH:03}", f"202601{number % _SETS_EACH + 1:02}T000000Z")
    measures = [partial(_ours, session.folder, count), partial(_raw, session.folder, count)]
    ours, raw = in_turn(measures, session.runs)
    yield Figure(
        row="sets",
        measured="what lies in a backup root, from its manifests: found, checked, digested",
        amount=f"{count} sets of {len(_ROLES)} files",
        twin="glob, read and json.loads of the same manifests",
        value=spread(ratios(ours, raw)),
        bar=_BAR,
        ours=spread(ours),
        raw=spread(raw),
    )


def _ours(root: Path, count: int) -> float:
    begun = time.monotonic()
    found = find(root)
    taken = time.monotonic() - begun
    if len(found.sets) != count or found.no_sets:
        raise LabError(f"{len(found.sets)} of {count} sets were found")
    return taken


def _raw(root: Path, count: int) -> float:
    begun = time.monotonic()
    read = [json.loads(path.read_bytes()) for path in root.glob("*/*/*/*/manifest.json.*")]
    taken = time.monotonic() - begun
    if len(read) != count:
        raise LabError(f"{len(read)} of {count} manifests were read")
    return taken


def _make(root: Path, machine: str, timestamp: str) -> None:
    folder = root / "vm-persistent" / "pool-01" / machine / timestamp
    folder.mkdir(parents=True)
    digest = f"blake3:{blake3(machine.encode()).hexdigest()}"
    manifest = Manifest(
        machine=machine,
        uuid="00000000-0000-0000-0000-000000000000",
        timestamp=timestamp,
        node="node-01.example.org",
        power=Power.RUNNING,
        method=Method.SAVE,
        consistency="state",
        files=tuple(
            SetFile.model_validate(
                {"name": f"{machine}.{name}.{timestamp}", "role": role, "size": 1 << 30, "digest": digest}
            )
            for role, name in _ROLES
        ),
        versions={"vmkeep": "0.1.0", "libvirt": "9.0.0", "qemu": "7.2.0"},
    )
    (folder / f"manifest.json.{timestamp}").write_text(manifest.to_json())
