"""A search that stays open, on a connection of its own, read by the thread that waits for it. Called by the watch.

The library's own streaming reads in a thread that can end without a word and waits without limits; here the reader is
the watch itself, every wait has an end, and a dead connection is an exception.
"""

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ldap3
from ldap3.core.exceptions import LDAPException
from ldap3.operation.search import search_operation
from ldap3.strategy.base import BaseStrategy
from ldap3.utils.asn1 import decode_message_fast

from vmkeep.directory import sync_protocol
from vmkeep.directory.connection import Connection
from vmkeep.directory.errors import Answer, Unreachable

_NO_ATTRIBUTES = ["1.1"]
_CHUNK = 65536  # bytes read at once


@dataclass(frozen=True)
class Message:
    """One message of the server. `kind` is entry, info, done, or other; `info` the value of a Sync Info message."""

    kind: str
    answer: Answer
    info: bytes = b""


class Stream:
    """The open search. `receive` from one thread; `abort` from any."""

    def __init__(self, connection: Connection, base: str, matching: str) -> None:
        self._connection = connection
        self._unread = b""
        control = (sync_protocol.REQUEST_CONTROL, True, sync_protocol.REFRESH_AND_PERSIST)
        self._search = self._send(base, matching, ldap3.SUBTREE, [control])

    def receive(self, patience: float) -> list[Message]:
        """What the server has sent, at least one message; empty after `patience` seconds of silence."""
        client = self._connection.client
        try:
            client.socket.settimeout(patience)
            data = client.socket.recv(_CHUNK)
        except TimeoutError:
            return []
        except (OSError, AttributeError) as error:  # no socket any more: closed by another thread
            raise Unreachable(f"lost the directory while watching: {error}") from None
        if not data:
            raise Unreachable("the directory ended the connection of a watch")
        self._unread += data
        return list(self._messages())

    def probe(self, patience: float) -> None:
        """Ask for something tiny: whatever arrives next proves that the connection is alive."""
        self._connection.client.socket.settimeout(patience)
        self._send("", "(objectClass=*)", ldap3.BASE, None)

    def _send(self, base: str, matching: str, scope: str, controls: list[tuple[str, bool, bytes]] | None) -> int:
        never = ldap3.DEREF_NEVER
        request = search_operation(base, matching, scope, never, _NO_ATTRIBUTES, 0, 0, False, False, False)
        try:
            return int(self._connection.client.send("searchRequest", request, controls))
        except (LDAPException, OSError) as error:
            raise Unreachable(f"cannot ask the directory to notify: {error}") from None

    def _messages(self) -> Iterator[Message]:
        while True:
            size = BaseStrategy.compute_ldap_message_size(self._unread)
            if size == -1 or size > len(self._unread):
                return
            raw, self._unread = self._unread[:size], self._unread[size:]
            yield self._message(decode_message_fast(raw))

    def _message(self, raw: Any) -> Message:
        answer = self._connection.client.strategy.decode_response_fast(raw)
        if int(raw["messageID"]) == 0:
            raise Unreachable("the directory says good-bye to a watch")
        if int(raw["messageID"]) != self._search:
            return Message("other", answer)
        if answer["type"] == "intermediateResponse" and answer["responseName"] == sync_protocol.INFO_MESSAGE:
            return Message("info", answer, bytes(answer["responseValue"] or b""))
        return Message({"searchResEntry": "entry", "searchResDone": "done"}.get(answer["type"], "other"), answer)


def abort(connection: Connection) -> None:
    """Make a `receive` in another thread return at once."""
    with contextlib.suppress(OSError, AttributeError):
        # The plain socket's own: the TLS one's would change the object under the reading thread.
        socket.socket.shutdown(connection.client.socket, socket.SHUT_RDWR)
