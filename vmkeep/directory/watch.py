"""A watch that wakes its owner when matching entries may have changed. Started by the store for every loop that acts.

It keeps no copy of the entries, so it has nothing to purge, and an event means nothing but "look again"; whoever is
woken reads. Each connection begins with a full refresh and one wake-up, so that nothing that happened before is missed.
Many changes make many wake-ups: the owner joins them.
"""

import hashlib
import random
import threading
from collections.abc import Callable

import structlog

from vmkeep.contract.errors import Refused, TryLater
from vmkeep.directory import errors
from vmkeep.directory.connection import Connection
from vmkeep.directory.errors import Unreachable, error_of
from vmkeep.directory.port import Scope, Watcher
from vmkeep.directory.settings import DirectorySettings
from vmkeep.directory.stream import Message, Stream, abort
from vmkeep.directory.sync_protocol import ends_refresh, is_cookie_only

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 10.0  # seconds between attempts to connect
_ASK_AGAIN = 300.0  # seconds: a server that cannot notify may have learned it meanwhile
_CLOSE_PATIENCE = 5.0  # seconds; a thread that still waits for a hanging server may no longer wake anybody
_BY_SYNC, _BY_POLL = "sync", "poll"

log = structlog.get_logger(__name__)


class DirectoryWatcher:
    """A Watcher over one base and filter, with one thread and one connection."""

    def __init__(
        self, settings: DirectorySettings, base: str, matching: str, wake: Callable[[], None], *, polls: bool = True
    ) -> None:
        self._settings = settings
        self._base = base
        self._matching = matching
        self._wake = wake
        self._polls = polls
        self._closing = threading.Event()
        self._connection: Connection | None = None
        self._kind = _BY_SYNC
        self._noticing = False
        self._thread = threading.Thread(target=self._run, name=f"watch {base}", daemon=True)
        self._thread.start()

    @property
    def kind(self) -> str:
        """See Watcher."""
        return self._kind

    def alive(self) -> bool:
        """See Watcher. A server that vanished without a word is noticed after two times `probe_seconds`."""
        return self._noticing and self._thread.is_alive()

    def close(self) -> None:
        """See Watcher."""
        self._closing.set()
        if self._connection is not None:
            abort(self._connection)
        if self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_PATIENCE)

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closing.is_set():
            try:
                self._watch_once()
            except (TryLater, Refused) as error:
                pause = _FIRST_PAUSE if self._noticing else min(pause * 2, _LONGEST_PAUSE)
                self._report(error)
            except Exception:  # the thread must outlive any answer, or nobody is ever woken again
                pause = _LONGEST_PAUSE
                log.exception("watch.failed", base=self._base)
            finally:
                self._noticing = False
            # Spread out, so that a restarted server is not met by every node in the same instant.
            self._closing.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret

    def _report(self, error: Exception) -> None:
        if not self._closing.is_set():
            log.warning("watch.interrupted", base=self._base, reason=str(error), was_watching=self._noticing)

    def _watch_once(self) -> None:
        """Connect and wake until the connection ends, which is an exception."""
        connection = self._connection = Connection(self._settings)
        try:
            if self._closing.is_set() or self._notified(connection):
                return
            if self._polls:
                self._polled(connection)
        finally:
            self._connection = None
            connection.close()
        self._closing.wait(_ASK_AGAIN)

    def _notified(self, connection: Connection) -> bool:
        """Wake as the server notifies; False where it cannot."""
        stream = Stream(connection, self._base, self._matching)
        self._kind = _BY_SYNC
        while not self._closing.is_set():
            for message in self._messages(stream):
                if message.kind == "done":
                    if message.answer["result"] == errors.UNAVAILABLE_CRITICAL_EXTENSION:
                        return False
                    raise self._ended(message)
                self._take(message)
        return True

    def _messages(self, stream: Stream) -> list[Message]:
        messages = stream.receive(self._settings.probe_seconds if self._noticing else self._settings.timeout_seconds)
        if messages or self._closing.is_set():
            return messages
        stream.probe(self._settings.timeout_seconds)
        messages = stream.receive(self._settings.timeout_seconds)
        if not messages and not self._closing.is_set():
            raise Unreachable(f"the directory {self._settings.uri} no longer answers a watch")
        return messages

    def _take(self, message: Message) -> None:
        if message.kind == "info" and ends_refresh(message.info):
            self._wake_owner()
            self._noticing = True  # after the owner knows: who sees us alive takes what it has read for good
        elif self._noticing and message.kind in ("entry", "info") and not is_cookie_only(message.info):
            self._wake_owner()

    def _ended(self, message: Message) -> Exception:
        if message.answer["result"] in (errors.SUCCESS, errors.SYNC_REFRESH_REQUIRED):
            return Unreachable("the directory ended a watch; it begins anew")
        return error_of(message.answer, f"the directory {self._settings.uri} does not notify of {self._base}")

    def _polled(self, connection: Connection) -> None:
        self._kind = _BY_POLL
        before: bytes | None = None
        while not self._closing.is_set():
            now = self._digest(connection)
            if now is None or now != before:
                self._wake_owner()
            self._noticing = True
            before = now
            self._closing.wait(self._settings.poll_seconds)

    def _digest(self, connection: Connection) -> bytes | None:
        """Names and versions of all matching entries in a few bytes; None where the versions may not be read."""
        lines, more = [], b""
        while True:
            page = connection.page(self._base, self._matching, Scope.SUBTREE, ("entryCSN",), more)
            if not errors.is_success(page.answer):
                raise error_of(page.answer, f"the directory {self._settings.uri} on {self._base}")
            lines += [f"{entry.dn}\0{entry.first('entryCSN')}" for entry in page.entries]
            if any(entry.first("entryCSN") is None for entry in page.entries):
                return None
            more = page.cookie
            if not more:
                return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).digest()

    def _wake_owner(self) -> None:
        if not self._closing.is_set():
            self._wake()
