"""The journal of one operation: what was ordered, what began, what ended, how it came out. Append-only, fsynced, local.

One file per leaf and mode, one JSON object a line. What ended is skipped after a restart; what began is asked of the
host. The file goes when the result has been reported to the directory. Written by the runner, listed by the cycle.
"""

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from nodeagent.durable import sync_directory
from nodeagent.order import Order

Fact: TypeAlias = str | int | float | bool
_SUFFIX = ".journal"


@dataclass(frozen=True)
class Outcome:
    """How an operation came out."""

    code: int
    sentence: str
    at: float = 0.0


@dataclass
class Record:
    """What the lines of a journal add up to."""

    order: Order | None = None
    began: dict[str, float] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    undone: set[str] = field(default_factory=set)
    facts: dict[str, Fact] = field(default_factory=dict)
    postponed: int = 0
    failure: Outcome | None = None
    result: Outcome | None = None

    def take(self, line: Mapping[str, Any]) -> None:
        """Add one line."""
        event, step = line.get("event"), line.get("step", "")
        self.facts.update(line.get("facts", {}))
        match event:
            case "order":
                self.order = Order.model_validate(line["order"])
            case "began":
                self.began[step] = line["at"]
            case "ended":
                self.ended.add(step)
            case "undone":
                self.undone.add(step)
            case "postponed":
                self.postponed += 1
            case "failed":
                if self.failure is None:
                    self.postponed = 0  # taking back has a patience of its own
                self.failure = Outcome(line["code"], line["sentence"])
            case "result":
                self.result = Outcome(line["code"], line["sentence"], line["at"])


class Journal:
    """One operation's journal, open for appending."""

    def __init__(self, path: Path, record: Record) -> None:
        self.path = path
        self.record = record

    @property
    def order(self) -> Order:
        """What is to be done."""
        assert self.record.order is not None, f"{self.path} begins without an order"
        return self.record.order

    def began(self, step: str, at: float, *, must: bool) -> None:
        """A step is about to touch something. `at` in seconds since the epoch; OSError where it `must` be durable.

        What follows a beginning need not be durable: steps and their way back may be repeated. So a full disk under the
        journal never keeps a machine standing still.
        """
        self._append({"event": "began", "step": step, "at": at}, must=must)

    def ended(self, step: str, facts: Mapping[str, Fact]) -> None:
        """A step is over, and what it found out."""
        self._append({"event": "ended", "step": step, "facts": dict(facts)}, must=False)

    def undone(self, step: str, facts: Mapping[str, Fact]) -> None:
        """A step's doing was taken back."""
        self._append({"event": "undone", "step": step, "facts": dict(facts)}, must=False)

    def postponed(self, sentence: str) -> None:
        """The outside world was not ready."""
        self._append({"event": "postponed", "sentence": sentence}, must=False)

    def failed(self, code: int, sentence: str) -> None:
        """The operation is to be taken back; written before anything is."""
        self._append({"event": "failed", "code": int(code), "sentence": sentence}, must=False)

    def result(self, outcome: Outcome) -> None:
        """Nothing more will be done; this is to be reported."""
        line = {"event": "result", "code": outcome.code, "sentence": outcome.sentence, "at": outcome.at}
        self._append(line, must=True)

    def remove(self) -> None:
        """The result is in the directory; the journal has done its duty."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        sync_directory(self.path.parent)

    def _append(self, line: dict[str, Any], *, must: bool) -> None:
        try:
            self._write(line)
        except OSError:
            if must:
                raise
        self.record.take(line)

    def _write(self, line: dict[str, Any]) -> None:
        data = (json.dumps(line, separators=(",", ":")) + "\n").encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            length = os.fstat(descriptor).st_size
            if os.write(descriptor, data) != len(data):
                os.ftruncate(descriptor, length)  # half a line would spoil the next
                raise OSError(errno.ENOSPC, f"no room for the journal {self.path}")
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


class Journals:
    """Every journal of this node."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(self, order: Order) -> Journal:
        """A new journal with its order durable in it."""
        journal = Journal(self._path(order.machine, order.timestamp, order.mode), Record())
        line = json.dumps({"event": "order", "order": order.model_dump(mode="json")}, separators=(",", ":")) + "\n"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(self._directory.parent)
        making = journal.path.with_suffix(".partial")
        making.unlink(missing_ok=True)
        descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        making.rename(journal.path)
        sync_directory(self._directory)
        journal.record.take(json.loads(line))
        return journal

    def find(self, machine: str, timestamp: str, mode: str) -> Journal | None:
        """The journal of one operation, where there is one; for whoever holds the machine's lock: it is mended."""
        path = self._path(machine, timestamp, mode)
        journal = self._open(path)
        if journal is None and path.exists():
            path.rename(path.with_suffix(".unreadable"))  # kept for a person
        elif journal is not None:
            self._cut_torn_line(path)
        return journal

    def all(self) -> list[Journal]:
        """Every journal that can be read, in order of name; only looked at, their workers may be writing."""
        found = (self._open(path) for path in sorted(self._directory.glob(f"*{_SUFFIX}")))
        return [journal for journal in found if journal is not None]

    @staticmethod
    def _cut_torn_line(path: Path) -> None:
        """A last line without an end was torn by a crash; nothing was done on its word."""
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(path, len(whole))

    def _path(self, machine: str, timestamp: str, mode: str) -> Path:
        return self._directory / f"{machine}.{timestamp}.{mode}{_SUFFIX}"

    @staticmethod
    def _open(path: Path) -> Journal | None:
        """None where it is gone, reported and removed in this moment, or cannot be read."""
        record = Record()
        try:
            content = path.read_text(encoding="utf-8", errors="replace")
            for text in content[: content.rfind("\n") + 1].splitlines():
                record.take(json.loads(text))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return Journal(path, record) if record.order is not None else None
