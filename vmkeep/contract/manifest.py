"""The manifest of a set: what it holds, with sizes and digests. Written last; a set without one is not a set.

Plain JSON, so that a person without vmkeep can read it and a catalogue can be rebuilt from the sets alone.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, NonNegativeInt

from vmkeep.contract.machine import Power
from vmkeep.contract.methods import Method
from vmkeep.contract.timestamps import from_timestamp

_DIGEST = re.compile(r"blake3:[0-9a-f]{64}")


def _plain_name(name: str) -> str:
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise ValueError(f"{name!r} is not a plain file name")
    return name


def _digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise ValueError(f"{text!r} is not blake3: and 64 hexadecimal digits")
    return text


def _timestamp(text: str) -> str:
    from_timestamp(text)
    return text


Role = Literal["state", "xml", "ldif", "disk", "nvram", "tpm"]
Consistency = Literal["state", "quiesced", "crash", "off"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SetFile(_Frozen):
    """One file: `size` is its length in bytes, `digest` the BLAKE3 of its whole content, holes read as zeros."""

    name: Annotated[str, AfterValidator(_plain_name)]
    role: Role
    size: NonNegativeInt
    digest: Annotated[str, AfterValidator(_digest)]
    target: str | None = None
    original_path: str | None = None


class Manifest(_Frozen):
    """What one set is. `method` is how it was made, `consistency` what that makes it worth."""

    format: Literal[1] = 1
    machine: str
    uuid: str
    timestamp: Annotated[str, AfterValidator(_timestamp)]
    node: str
    power: Power
    method: Method
    consistency: Consistency
    files: tuple[SetFile, ...]
    versions: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    def to_json(self) -> str:
        """The text that is written: indented, for people."""
        return self.model_dump_json(indent=2) + "\n"
