"""Which restores this node has files of in its retain directories: a note each, from the first file to the last.

Whoever backs out of a restore only edits the leaf, and a leaf that has ended asks nobody for anything: the cycle looks
at these notes and cleans up. Noted by the plan of unretain, read by the cycle.
"""

import contextlib
import os
from pathlib import Path

from pydantic import ValidationError

from nodeagent.durable import sync_directory
from nodeagent.order import Order

_SUFFIX = ".unretained"


class Unretained:
    """Every note of this node."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def note(self, order: Order) -> None:
        """Remember that there are, or will be, files of this restore; durable when it returns."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(self._directory.parent)
        path = self._path(order.machine, order.timestamp)
        making = path.with_suffix(".partial")
        making.unlink(missing_ok=True)
        descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(order.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        making.rename(path)
        sync_directory(self._directory)

    def find(self, machine: str, timestamp: str) -> Order | None:
        """The order that made the first files, None where there are none."""
        return self._read(self._path(machine, timestamp))

    def all(self) -> list[Order]:
        """Every one, in order of name; an unreadable note is passed over and stays for a person."""
        found = (self._read(path) for path in sorted(self._directory.glob(f"*{_SUFFIX}")))
        return [order for order in found if order is not None]

    def forget(self, order: Order) -> None:
        """Nothing of it is left."""
        with contextlib.suppress(FileNotFoundError):
            self._path(order.machine, order.timestamp).unlink()
            sync_directory(self._directory)

    def _path(self, machine: str, timestamp: str) -> Path:
        return self._directory / f"{machine}.{timestamp}{_SUFFIX}"

    @staticmethod
    def _read(path: Path) -> Order | None:
        try:
            return Order.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError):
            return None
