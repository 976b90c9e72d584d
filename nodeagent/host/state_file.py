"""Reads the description inside a state file before libvirt does, which asks the emulator named there what it can do.

Asking runs it: whoever could write to a set could have a program of this host run.

Format: libvirt's src/qemu/qemu_saveimage.h, in the byte order of the host that wrote it. Called by the surveys.
"""

import os
import struct

from nodeagent.host.errors import HostFailure

_HEADER = struct.Struct("=16sII")  # magic, version, length of description and cookie; more that is not needed follows
_LENGTH = 92
_MAGIC = b"LibvirtQemudSave"
_VERSIONS = (1, 2)
_MOST_TEXT = 16 << 20


def description_inside(descriptor: int, name: str) -> str:
    """The XML inside an open state file; HostFailure where it is none, or was not written to its end."""
    header = os.pread(descriptor, _LENGTH, 0)
    if len(header) < _LENGTH or not header.startswith(_MAGIC):
        raise HostFailure(f"{name} is no state file that was written to its end")
    _, version, length = _HEADER.unpack_from(header)
    if version not in _VERSIONS:
        raise HostFailure(f"{name} is a state file of version {version}; {_VERSIONS} are known")
    if length > _MOST_TEXT:
        raise HostFailure(f"{name} claims a description of {length} bytes")
    text, end, _ = os.pread(descriptor, length, _LENGTH).partition(b"\0")
    try:
        return text.decode() if end else ""
    except UnicodeDecodeError:
        raise HostFailure(f"{name} has a description inside that is not UTF-8") from None
