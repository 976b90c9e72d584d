"""Reads the header of a qcow2 image, before any tool opens it and as proof after: nothing is probed, nothing followed.

Stricter than QEMU: what it would refuse is refused, and so is whatever could lead it to another file unseen.
Format: the qcow2 specification of QEMU (docs/interop/qcow2.txt). All numbers big-endian.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from nodeagent.host.errors import HostFailure, NotAnImage

_MAGIC = b"QFI\xfb"
_FIXED = struct.Struct(">4sIQIIQIIQ")  # magic … l1_table_offset
_INCOMPATIBLE_AT, _HEADER_LENGTH_AT = 72, 100  # of version 3
_EXTENSION = struct.Struct(">II")
_DATA_FILE_NAME = 0x44415441
_LENGTHS = {2: 72, 3: 104}
_CLUSTER_BITS = range(9, 22)
_MOST_NAME = 1023
_MOST_SIZE = 1 << 50
_MOST_L1 = 32 << 20
_MOST_OFFSET = 1 << 56
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
    fixed = os.pread(descriptor, max(_LENGTHS.values()), 0)
    if len(fixed) < min(_LENGTHS.values()) or not fixed.startswith(_MAGIC):
        raise NotAnImage(f"{name} is not a qcow2 image")
    _, version, backing_at, backing_length, cluster_bits, size, encryption, l1_entries, l1_at = _FIXED.unpack_from(
        fixed
    )
    _check_layout(name, version, len(fixed), cluster_bits)
    _check_content(name, size, encryption)
    if l1_entries * 8 > _MOST_L1 or l1_at > _MOST_OFFSET:
        raise HostFailure(f"{name} has an absurd table of {l1_entries} entries at {l1_at}")
    first_cluster = os.pread(descriptor, 1 << cluster_bits, 0)
    if version == 3:
        _check_features(name, struct.unpack_from(">Q", first_cluster, _INCOMPATIBLE_AT)[0])
    _check_extensions(name, version, first_cluster, backing_at)
    backing = _backing(name, first_cluster, backing_at, backing_length) if backing_at else None
    table = os.pread(descriptor, l1_entries * 8, l1_at)
    return Header(size, backing, not any(table))


def is_begun(descriptor: int) -> bool:
    """Whether a file begins as such an image does; one whose making was cut short may not."""
    return os.pread(descriptor, len(_MAGIC), 0) == _MAGIC


def _check_layout(name: str, version: int, length: int, cluster_bits: int) -> None:
    if version not in _LENGTHS:
        raise HostFailure(f"{name} is a qcow2 image of version {version}; 2 and 3 are known")
    if length < _LENGTHS[version]:
        raise HostFailure(f"{name} ends within its header")
    if cluster_bits not in _CLUSTER_BITS:
        raise HostFailure(f"{name} claims clusters of 2^{cluster_bits} bytes")


def _check_content(name: str, size: int, encryption: int) -> None:
    if size > _MOST_SIZE:
        raise HostFailure(f"{name} claims a size of {size} bytes")
    if encryption:
        raise HostFailure(f"{name} is encrypted; such images are not supported")


def _check_features(name: str, incompatible: int) -> None:
    if incompatible & _CORRUPT:
        raise HostFailure(f"{name} is marked corrupt; repair it with qemu-img check")
    if incompatible & _EXTERNAL_DATA:
        raise HostFailure(f"{name} keeps its data in another file; such images are not supported")
    if incompatible & ~_KNOWN:
        raise HostFailure(f"{name} uses unknown features {incompatible & ~_KNOWN:#x}")


def _check_extensions(name: str, version: int, first_cluster: bytes, backing_at: int) -> None:
    begin = _LENGTHS[version] if version == 2 else struct.unpack_from(">I", first_cluster, _HEADER_LENGTH_AT)[0]
    if not _LENGTHS[version] <= begin <= len(first_cluster):
        raise HostFailure(f"{name} claims a header of {begin} bytes")
    # They end where the backing file's name begins.
    end = min(backing_at or len(first_cluster), len(first_cluster))
    # QEMU follows this name only where the feature says so; a flipped bit must not decide what is read.
    if _DATA_FILE_NAME in _extensions(first_cluster[:end], begin):
        raise HostFailure(f"{name} names another file for its data; such images are not supported")


def _extensions(header: bytes, at: int) -> Iterator[int]:
    """The kinds of the header's extensions, up to its end or the one that says so."""
    while at + _EXTENSION.size <= len(header):
        kind, length = _EXTENSION.unpack_from(header, at)
        if not kind:
            return
        yield kind
        at += _EXTENSION.size + -(-length // 8) * 8


def _backing(name: str, first_cluster: bytes, at: int, length: int) -> str:
    if not 0 < length <= _MOST_NAME:
        raise HostFailure(f"{name} names a backing file of {length} characters")
    named = first_cluster[at : at + length]
    if len(named) < length:
        raise HostFailure(f"{name} names a backing file outside its header, at {at}")
    backing = os.fsdecode(named)
    # QEMU's name ends at the first NUL; ours would not.
    if not backing.isprintable():
        raise HostFailure(f"{name} names a backing file with unprintable characters, {backing!r}")
    return backing
