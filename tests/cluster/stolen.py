"""A set that somebody can write to, manifest and leaf included: a node that was taken over can."""

import json
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from tests.cluster.backed_up import BackedUp


@dataclass(frozen=True)
class Stolen(BackedUp):
    """A machine that runs, its set, and somebody who can write to the set and to the leaf."""

    def state(self, folder: Path) -> Path:
        return next(folder.glob(f"{self.machine.name}.state*"))

    def ask(self, edit: str, done: str) -> tuple[str, int, str]:
        self.plain.edit(edit, self.machine.name, self.leaf)
        entry = self.plain.wait(self.machine.name, self.leaf, done)
        message = entry.get("vmkeepMessage", [""])[0]
        return entry["sstProvisioningMode"][0], int(entry["sstProvisioningReturnValue"][0]), message

    def vouch(self) -> None:
        """Make manifest and leaf say of what lies there that it was backed up."""
        manifest = self.folder / f"manifest.json.{self.leaf}"
        told = json.loads(manifest.read_text())
        for file in told["files"]:
            content = (self.folder / file["name"]).read_bytes()
            file |= {"size": len(content), "digest": f"blake3:{blake3(content).hexdigest()}"}
        manifest.write_text(json.dumps(told))
        digest = f"blake3:{blake3(manifest.read_bytes()).hexdigest()}"
        dn = self.plain.leaf_dn(self.machine.name, self.leaf)
        self.plain.modify(dn, f"replace vmkeepManifestDigest {digest}")

    def back_out(self) -> None:
        self.plain.modify(self.plain.leaf_dn(self.machine.name, self.leaf), "replace sstProvisioningReturnValue 0")
        self.plain.finish(self.machine.name, self.leaf)
