"""Makes small backup sets by hand, as an agent publishes them; for tests of what reads a backup root."""

from pathlib import Path

from blake3 import blake3

from vmkeep.contract.machine import Power
from vmkeep.contract.manifest import Manifest, SetFile

PLACE = "vm-persistent/pool-01"


def make_set(root: Path, machine: str, timestamp: str, ldif: bytes = b"dn: x\n", place: str = PLACE) -> Path:
    """A set with a directory entry and a disk of 1 GiB by its manifest; the disk itself is not there."""
    folder = root / place / machine / timestamp
    folder.mkdir(parents=True)
    name = f"{machine}.ldif.{timestamp}"
    (folder / name).write_bytes(ldif)
    text = manifest_of(machine, timestamp, ldif).to_json()
    (folder / f"manifest.json.{timestamp}").write_text(text)
    return folder


def manifest_of(machine: str, timestamp: str, ldif: bytes = b"dn: x\n") -> Manifest:
    """The manifest of such a set."""
    files = (
        SetFile(name=f"{machine}.ldif.{timestamp}", role="ldif", size=len(ldif), digest=digest(ldif)),
        SetFile(name=f"disk.qcow2.{timestamp}", role="disk", size=1 << 30, digest=digest(b""), target="vda"),
    )
    return Manifest(
        machine=machine,
        uuid="00000000-0000-0000-0000-000000000000",
        timestamp=timestamp,
        node="n1",
        power=Power.RUNNING,
        method="save",
        consistency="state",
        files=files,
        versions={"vmkeep": "0.1.0"},
    )


def digest(content: bytes) -> str:
    """As manifests write it."""
    return f"blake3:{blake3(content).hexdigest()}"
