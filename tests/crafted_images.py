"""Images that lead elsewhere, lie, or end too early, as an attacker makes them: real ones, a few bytes changed."""

import struct
from collections.abc import Callable
from pathlib import Path

from lab import programs

BACKING_AT, BACKING_LENGTH, VERSION, CLUSTER_BITS, SIZE, ENCRYPTION, L1_ENTRIES, L1_AT = 8, 16, 4, 20, 24, 32, 36, 40
INCOMPATIBLE, HEADER_LENGTH = 72, 100
_DATA_FILE = 0x44415441


def patched(image: bytes, at: int, form: str, value: int) -> bytes:
    """The image with one number changed."""
    changed = bytearray(image)
    struct.pack_into(f">{form}", changed, at, value)
    return bytes(changed)


def plain(folder: Path, *options: str) -> bytes:
    """A real, empty image of 1 MiB."""
    path = folder / "plain.qcow2"
    path.unlink(missing_ok=True)
    programs.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "1M"])
    image = path.read_bytes()
    path.unlink()
    return image


def naming(image: bytes, name: bytes) -> bytes:
    """The image over the file of that name, whatever the name is."""
    at = 1024
    changed = bytearray(image)
    changed[at : at + len(name)] = name
    return patched(patched(bytes(changed), BACKING_AT, "Q", at), BACKING_LENGTH, "I", len(name))


def raw_disk(image: bytes, name: bytes) -> bytes:
    """A guest's own disk to whose first sectors the guest wrote a header that names a file of the host."""
    return naming(image, name)[:65536] + b"what the guest has on its disk" * 40000


def with_data_file(image: bytes, name: bytes, *, bit: bool) -> bytes:
    """The image with its data in another file; without the bit, QEMU reads the name and does not follow it."""
    length = struct.unpack_from(">I", image, HEADER_LENGTH)[0]
    extension = struct.pack(">II", _DATA_FILE, len(name)) + name + bytes(-len(name) % 8) + bytes(8)
    changed = bytearray(image)
    changed[length : length + len(extension)] = extension
    return patched(bytes(changed), INCOMPATIBLE, "Q", 4 if bit else 0)


# What each is called, how it is made of a plain image and a host's file, and a word of the reason against it.
CRAFTED: dict[str, tuple[Callable[[bytes, bytes], bytes], str]] = {
    "a raw disk that begins with a header": (raw_disk, "lies over"),
    "a host's file below": (naming, "lies over"),
    "JSON below": (lambda image, name: naming(image, b'json:{"file.filename":"%s"}' % name), "lies over"),
    "the network below": (lambda image, _: naming(image, b"nbd://127.0.0.1:1/x"), "lies over"),
    "a device below": (lambda image, _: naming(image, b"/dev/mem"), "lies over"),
    "a name that ends early": (lambda image, name: naming(image, name + b"\0/x"), "unprintable"),
    "a name of bytes": (lambda image, name: naming(image, name + b"\xff"), "unprintable"),
    "a name that is empty": (lambda image, _: patched(image, BACKING_AT, "Q", 1024), "of 0 characters"),
    "a name that is endless": (lambda image, _: naming(image, b"x" * 5000), "of 5000 characters"),
    "a name outside": (
        lambda image, name: patched(naming(image, name), BACKING_AT, "Q", 1 << 40),
        "outside its header",
    ),
    "a name beyond numbers": (
        lambda image, name: patched(naming(image, name), BACKING_AT, "Q", (1 << 64) - 1),
        "outside its header",
    ),
    "data elsewhere": (lambda image, name: with_data_file(image, name, bit=True), "another file"),
    "data elsewhere, not yet": (lambda image, name: with_data_file(image, name, bit=False), "another file"),
    "an unknown feature": (lambda image, _: patched(image, INCOMPATIBLE, "Q", 1 << 40), "unknown features 0x1"),
    "the last unknown feature": (lambda image, _: patched(image, INCOMPATIBLE, "Q", 1 << 63), "unknown features 0x8"),
    "marked corrupt": (lambda image, _: patched(image, INCOMPATIBLE, "Q", 2), "marked corrupt"),
    "encrypted": (lambda image, _: patched(image, ENCRYPTION, "I", 2), "encrypted"),
    "another version": (lambda image, _: patched(image, VERSION, "I", 4), "version 4"),
    "an absurd size": (lambda image, _: patched(image, SIZE, "Q", (1 << 64) - 1), "claims a size"),
    "absurd clusters": (lambda image, _: patched(image, CLUSTER_BITS, "I", 1 << 31), "claims clusters"),
    "an absurd header": (lambda image, _: patched(image, HEADER_LENGTH, "I", (1 << 32) - 1), "claims a header"),
    "no header to speak of": (lambda image, _: patched(image, HEADER_LENGTH, "I", 8), "claims a header"),
    "an absurd table": (lambda image, _: patched(image, L1_ENTRIES, "I", (1 << 32) - 1), "absurd table"),
    "a table beyond numbers": (lambda image, _: patched(image, L1_AT, "Q", (1 << 64) - 1), "absurd table"),
    "an end after the magic": (lambda image, _: image[:4], "not a qcow2 image"),
    "an end within version 2": (lambda image, _: image[:71], "not a qcow2 image"),
    "an end within the features": (lambda image, _: image[:75], "ends within its header"),
    "an end within version 3": (lambda image, _: image[:103], "ends within its header"),
    "nothing at all": (lambda _image, _name: b"", "not a qcow2 image"),
}
