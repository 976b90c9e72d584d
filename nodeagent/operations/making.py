"""The manifest in the making: what is known of a set before it is published, kept beside its files in retain.

Snapshot writes it, merge adds digests, retain completes it. Readable on any node that sees the files.
"""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from nodeagent.host.copying import Content
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, Folder
from vmkeep.contract.machine import Power
from vmkeep.contract.manifest import Consistency, Manifest, Role, SetFile
from vmkeep.contract.methods import Method

NAME = ".manifest.making"


class MadeFile(BaseModel):
    """One file in retain; size and digest where somebody has read it already."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    role: Role
    target: str | None = None
    original_path: str | None = None
    size: int | None = None
    digest: str | None = None

    def to_set_file(self, kept_name: str, content: Content) -> SetFile:
        """The manifest's line for it."""
        return SetFile(
            name=kept_name,
            role=self.role,
            size=content.size,
            digest=content.digest,
            target=self.target,
            original_path=self.original_path,
        )


class Making(BaseModel):
    """A set that is not complete yet. `renames`: see Route, as the snapshot saw it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    machine: str
    uuid: str
    timestamp: str
    node: str
    power: Power
    method: Method = Method.SAVE
    consistency: Consistency
    files: tuple[MadeFile, ...]
    versions: dict[str, str]
    renames: bool = False

    def with_content(self, name: str, content: Content) -> "Making":
        """The same, with one file's size and digest known."""
        known = {"size": content.size, "digest": content.digest}
        files = tuple(file.model_copy(update=known) if file.name == name else file for file in self.files)
        return self.model_copy(update={"files": files})

    def knows(self, name: str) -> bool:
        """Whether a file's digest was noted."""
        return any(file.name == name and file.digest is not None for file in self.files)

    def manifest(self, files: Sequence[SetFile]) -> Manifest:
        """The finished manifest."""
        return Manifest(
            machine=self.machine,
            uuid=self.uuid,
            timestamp=self.timestamp,
            node=self.node,
            power=self.power,
            method=self.method,
            consistency=self.consistency,
            files=tuple(files),
            versions=self.versions,
        )


def write_making(folder: Folder, making: Making) -> None:
    """Put it in place, durable."""
    folder.write(NAME, making.model_dump_json(indent=1).encode(), Access(mode=0o600))


def read_making(folder: Folder) -> Making:
    """Read it; HostFailure where it is missing or unreadable."""
    try:
        return Making.model_validate_json(folder.read(NAME))
    except FileNotFoundError:
        raise HostFailure(f"{folder.path} holds no backup in the making ({NAME} is missing)") from None
    except ValidationError as why:
        raise HostFailure(f"{folder.path / NAME} cannot be read: {why}") from None
