"""Stands between a client and a TLS server for one connection, and keeps what the client sends."""

import contextlib
import socket
import threading

PATIENCE = 10.0
_MOST = 65536


class Eavesdropper:
    """Relays to the server at `port`; what the client sent is the answer of `close`."""

    def __init__(self, port: int) -> None:
        self.heard: list[bytes] = []
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> list[bytes]:
        self._thread.join(PATIENCE)
        self._listener.close()
        return self.heard

    def serve(self, client: socket.socket) -> None:
        """What is done with the one connection."""
        with self.server() as server:
            self.relay(client, server)

    def server(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._server_port), timeout=PATIENCE)

    def listen(self, client: socket.socket) -> bytes:
        """The next that the client says, kept; empty at its end."""
        said = client.recv(_MOST)
        self.heard += [said] if said else []
        return said

    def relay(self, client: socket.socket, server: socket.socket) -> None:
        """Carry both ways until the client ends."""
        back = threading.Thread(target=_copy, args=(server, client), daemon=True)
        back.start()
        with contextlib.suppress(ConnectionResetError):
            while said := self.listen(client):
                server.sendall(said)
        server.shutdown(socket.SHUT_WR)
        back.join(PATIENCE)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            client.settimeout(PATIENCE)
            with client:
                self.serve(client)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_MOST):
            target.sendall(data)
