"""Reads the header of a qcow2 image, before any tool opens it and as proof after: nothing is probed, nothing followed.

Format: the qcow2 specification of QEMU (docs/interop/qcow2.txt). All numbers big-endian.
"""

import os
import struct
from dataclasses import dataclass

from nodeagent.host.errors import HostFailure

_MAGIC = b"QFI\xfb"
_FIXED = struct.Struct(">4sIQIIQIIQ")  # magic … l1_table_offset
_MOST_NAME = 1023
_MOST_SIZE = 1 << 50
_MOST_L1 = 32 << 20
_V2_HEADER = 72
# Dirty and corrupt are states, not layouts; external data files (4), extended L2 (16) and compression types (8) are
# layouts: the first takes data elsewhere, so it is refused.
_DIRTY, _CORRUPT, _EXTERNAL_DATA, _COMPRESSION, _EXTENDED_L2 = 1, 2, 4, 8, 16
_KNOWN = _DIRTY | _COMPRESSION | _EXTENDED_L2


@dataclass(frozen=True)
class Header:
    """What an image says of itself. `virtual_size` in bytes; `is_empty` when no cluster has been allocated."""

    virtual_size: int
    backing_file: str | None
    is_empty: bool


def read_header(descriptor: int, name: str) -> Header:
    """The header of an open image; HostFailure where it is not a plain qcow2 image. `name` is for the sentence."""
    fixed = os.pread(descriptor, 112, 0)
    if len(fixed) < _V2_HEADER or not fixed.startswith(_MAGIC):
        raise HostFailure(f"{name} is not a qcow2 image")
    _, version, backing_at, backing_length, _, size, encryption, l1_entries, l1_at = _FIXED.unpack_from(fixed)
    _check_layout(name, version, size, encryption, fixed)
    if l1_entries * 8 > _MOST_L1:
        raise HostFailure(f"{name} has an absurd table of {l1_entries} entries")
    backing = _text(descriptor, backing_at, backing_length, name) if backing_at else None
    table = os.pread(descriptor, l1_entries * 8, l1_at)
    return Header(size, backing, not any(table))


def is_begun(descriptor: int) -> bool:
    """Whether a file begins as such an image does; one whose making was cut short may not."""
    return os.pread(descriptor, len(_MAGIC), 0) == _MAGIC


def _check_layout(name: str, version: int, size: int, encryption: int, fixed: bytes) -> None:
    if version not in (2, 3):
        raise HostFailure(f"{name} is a qcow2 image of version {version}; 2 and 3 are known")
    if size > _MOST_SIZE:
        raise HostFailure(f"{name} claims a size of {size} bytes")
    if encryption:
        raise HostFailure(f"{name} is encrypted; such images are not supported")
    if version == 3:
        (incompatible,) = struct.unpack_from(">Q", fixed, 72)
        _check_features(name, incompatible)


def _check_features(name: str, incompatible: int) -> None:
    if incompatible & _CORRUPT:
        raise HostFailure(f"{name} is marked corrupt; repair it with qemu-img check")
    if incompatible & _EXTERNAL_DATA:
        raise HostFailure(f"{name} keeps its data in another file; such images are not supported")
    if incompatible & ~_KNOWN:
        raise HostFailure(f"{name} uses unknown features {incompatible & ~_KNOWN:#x}")


def _text(descriptor: int, at: int, length: int, name: str) -> str:
    if length > _MOST_NAME:
        raise HostFailure(f"{name} names a backing file of {length} characters")
    return os.fsdecode(os.pread(descriptor, length, at))
