"""A Unix-socket wire between client and slapd that loses what a test tells it to; for the tests of doors and watch."""

import contextlib
import socket
import threading
import time
from pathlib import Path
from urllib.parse import quote

SEARCH, MODIFY, ADD, DELETE = 0x63, 0x66, 0x68, 0x4A


def operation_of(message: bytes) -> int:
    """The tag of a request: after the message's own header and its id."""
    start = 2 + (message[1] & 0x7F if message[1] & 0x80 else 0)
    return message[start + 2 + message[start + 1]]


class UnreliableWire:
    """Listens on `path` and forwards to `server`. `seen` counts requests by operation; `slow`: seconds each takes."""

    def __init__(self, path: Path, server: Path) -> None:
        self.uri = f"ldapi://{quote(str(path), safe='')}"
        self.seen: list[int] = []
        self.lose_answer_to: list[int] = []
        self.lose_request: list[int] = []
        self.silent = threading.Event()
        self.slow = 0.0
        self._is_cut = False
        self._server = server
        self._sockets: list[socket.socket] = []
        self._losing: dict[socket.socket, threading.Event] = {}
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._start(self._accept)

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            _end(each)
        for thread in self._threads:
            thread.join(5)

    def cut(self) -> None:
        """End every connection and take no new one, until `mend`."""
        self._is_cut = True
        for each in self._sockets:
            _end(each)

    def mend(self) -> None:
        """Take connections again."""
        self._is_cut = False

    def lose_answers_to_writes(self, number: int) -> None:
        """Of the next so many writes: the server does them, and nobody hears of it."""
        self.lose_answer_to[:] = [MODIFY] * number

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._is_cut:
                    _end(client)
                    continue
                server = socket.socket(socket.AF_UNIX)
                self._sockets += [client, server]
                try:
                    server.connect(str(self._server))
                except OSError:
                    _end(client)
                    continue
                self._start(self._forward_requests, client, server)
                self._start(self._forward_answers, client, server)

    def _forward_requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while message := client.recv(65536):
                operation = operation_of(message)
                self.seen.append(operation)
                time.sleep(self.slow)
                if self.silent.is_set():
                    continue
                if operation in self.lose_request:
                    self.lose_request.remove(operation)
                    break
                if operation in self.lose_answer_to:
                    self.lose_answer_to.remove(operation)
                    self._lose_answer(client, server, message)
                    break
                server.sendall(message)
        _end(client)
        _end(server)

    def _lose_answer(self, client: socket.socket, server: socket.socket, message: bytes) -> None:
        """Let the server do it, wait until it has, and say nothing."""
        fresh = self._losing[server] = threading.Event()
        server.sendall(message)
        fresh.wait(5)

    def _forward_answers(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while answer := server.recv(65536):
                if server in self._losing:
                    self._losing[server].set()
                    return
                if not self.silent.is_set():
                    client.sendall(answer)
        _end(client)


def _end(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
