"""Another description inside a state file, written by whoever may write there."""

from collections.abc import Callable
from pathlib import Path

EMULATOR = b"/usr/bin/qemu-system-x86_64"
_XML_AT = 92  # libvirt's header before it


def changed(state: Path, change: Callable[[bytes], bytes]) -> None:
    """Write another description into a state file, as long as the one it takes the place of."""
    content = state.read_bytes()
    end = content.index(b"\0", _XML_AT)
    old = content[_XML_AT:end]
    new = change(old)
    assert new != old
    if len(new) > len(old):  # indentation is for people
        new = b"".join(line.lstrip() for line in new.splitlines(keepends=True))
    assert len(new) <= len(old)
    state.write_bytes(content[:_XML_AT] + new.ljust(len(old)) + content[end:])
