"""A man in the middle of StartTLS, an old TLS, a referral elsewhere: no bind is sent, and nothing forged is believed.

What counts is what went over the wire, byte by byte.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.slapd import Slapd
from tests.conftest import SlapdFactory
from tests.slapd.eavesdropper import Eavesdropper
from tests.slapd.small_directory import ADMIN, PLAIN, SUFFIX, populate, settings
from tests.slapd.tls_server import Certificates, TlsServer
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.directory import open_store
from vmkeep.directory.settings import DirectorySettings

SECRET = "canary-of-the-wire"
TLS_HANDSHAKE, BIND = 0x16, 0x60
START_TLS_OID = b"1.3.6.1.4.1.1466.20037"


def answer(operation: int, code: int, number: int) -> bytes:
    """An LDAP result (operation 0x78: extended, 0x61: bind) to the message of that number."""
    result = bytes([0x0A, 1, code, 4, 0, 4, 0])
    return bytes([0x30, 3 + 2 + len(result), 2, 1, number, operation, len(result)]) + result


class ManInTheMiddle(Eavesdropper):
    """Answers the first message with these words, and then relays to a server or only listens."""

    def __init__(self, first_answer: bytes, relay_to: int = 0, then: bytes = b"") -> None:
        self._answer, self._relays, self._then = first_answer, bool(relay_to), then
        super().__init__(relay_to)

    def serve(self, client: socket.socket) -> None:
        first = self.listen(client)
        if self._relays:
            self._begin_tls(client, first)
            return
        client.sendall(self._answer)
        while self.listen(client):
            client.sendall(self._then)

    def _begin_tls(self, client: socket.socket, first: bytes) -> None:
        """With the true server in the client's name, with words of ours slipped in before it."""
        with self.server() as server:
            server.sendall(first)
            server.recv(65536)
            client.sendall(self._answer)
            self.relay(client, server)


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text(SECRET)
    return file


@pytest.fixture(scope="module")
def server(slapd_factory: SlapdFactory, certificates: Certificates) -> Iterator[TlsServer]:
    slapd = slapd_factory(PLAIN)
    populate(slapd)
    server = TlsServer(slapd, certificates.folder / "ca.pem")
    server.present(*certificates.issue("good", "/CN=server", "IP:127.0.0.1"))
    yield server
    server.stop()


def wanted(port: int, password: Path, authority: Path | None, scheme: str = "ldap") -> DirectorySettings:
    how: dict[str, object] = {"uri": f"{scheme}://127.0.0.1:{port}", "suffix": SUFFIX, "timeout_seconds": 3}
    how |= {"bind_dn": ADMIN, "password_file": password, "ca_file": authority, "start_tls": scheme == "ldap"}
    return DirectorySettings.model_validate(how)


STRIPPED = {
    "says no": (answer(0x78, 2, 1), b""),
    "is busy": (answer(0x78, 51, 1), b""),
    "is unavailable": (answer(0x78, 52, 1), b""),
    "says yes and goes on in the clear": (answer(0x78, 0, 1), answer(0x61, 0, 2)),
    "says yes, and that the bind went well": (answer(0x78, 0, 1) + answer(0x61, 0, 2), answer(0x61, 0, 2)),
    "answers another message": (answer(0x78, 0, 9), b""),
    "answers as if it were a bind": (answer(0x61, 0, 1), b""),
    "says nothing that is LDAP": (b"HTTP/1.1 200 OK\r\n\r\n", b""),
}


@pytest.mark.parametrize("case", STRIPPED)
def test_whoever_strips_start_tls_hears_no_bind(case: str, password: Path) -> None:
    first, then = STRIPPED[case]
    middle = ManInTheMiddle(first, then=then)
    with pytest.raises((Refused, TryLater)):
        open_store(wanted(middle.port, password, None)).read(SUFFIX)
    request, *more = middle.close()
    assert START_TLS_OID in request
    heard = b"".join(more)
    assert SECRET.encode() not in heard
    assert ADMIN.encode() not in heard
    assert heard[:1] in (b"", bytes([TLS_HANDSHAKE]), b"\x30")
    if heard[:1] == b"\x30":  # at most a good-bye in the clear
        assert BIND not in heard[5:6]
        assert len(heard) < 20


def test_what_is_slipped_in_before_tls_is_not_believed_after_it(server: TlsServer, password: Path) -> None:
    """A forged success of the bind, sent before TLS began: with the wrong password, it would let us go on as nobody."""
    middle = ManInTheMiddle(answer(0x78, 0, 1) + answer(0x61, 0, 2), relay_to=server.ldap)
    with pytest.raises((Refused, TryLater)):
        open_store(wanted(middle.port, password, server.authority)).read(SUFFIX)
    assert SECRET.encode() not in b"".join(middle.close())


def test_an_older_tls_than_1_2_is_not_spoken(certificates: Certificates, password: Path) -> None:
    context = _old(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.load_cert_chain(*certificates.issue("old", "/CN=server", "IP:127.0.0.1"))
    authority = certificates.folder / "ca.pem"
    heard: list[str] = []
    with _serving(context, heard) as port:
        careless = _old(ssl.create_default_context(cafile=authority))
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            careless.wrap_socket(plain, server_hostname="127.0.0.1") as spoken,
        ):
            assert spoken.version() == "TLSv1.1", "else the test shows nothing"
    assert heard == ["TLSv1.1"]
    heard.clear()
    with _serving(context, heard) as port, pytest.raises((Refused, TryLater)):
        open_store(wanted(port, password, authority, "ldaps")).read(SUFFIX)
    assert heard == ["no TLS"]


def _old(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


@contextlib.contextmanager
def _serving(context: ssl.SSLContext, heard: list[str]) -> Iterator[int]:
    """Take one connection, and note which TLS came of it."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def shake_hands() -> None:
        client, _ = listener.accept()
        client.settimeout(10)
        try:
            with context.wrap_socket(client, server_side=True) as spoken:
                heard.append(str(spoken.version()))
        except OSError:
            heard.append("no TLS")

    thread = threading.Thread(target=shake_hands, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        thread.join(10)
        listener.close()


@pytest.mark.parametrize("ask", ["read", "search", "replace"])
def test_a_referral_is_not_followed(ask: str, slapd_factory: SlapdFactory, referring: tuple[Slapd, str]) -> None:
    slapd, dn = referring
    store = open_store(settings(slapd))
    asked: dict[str, Callable[[], object]] = {
        "read": lambda: store.read(f"ou=below,{dn}"),
        "search": lambda: list(store.search(SUFFIX)),
        "replace": lambda: store.replace(f"ou=below,{dn}", {"description": ("x",)}),
    }
    with contextlib.suppress(Refused, TryLater):
        asked[ask]()
    store.close()
    with pytest.raises(BlockingIOError):
        REFERRED_TO[0].accept()


REFERRED_TO: list[socket.socket] = []


@pytest.fixture(scope="module")
def referring(slapd_factory: SlapdFactory) -> Iterator[tuple[Slapd, str]]:
    """A server with an entry that sends whoever asks to somebody else, who listens."""
    slapd = slapd_factory(PLAIN)
    populate(slapd)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        REFERRED_TO[:] = [listener]
        dn = f"ou=elsewhere,{SUFFIX}"
        where = f"ref: ldap://127.0.0.1:{listener.getsockname()[1]}/{dn}"
        slapd.add(f"dn: {dn}\nobjectClass: referral\nobjectClass: extensibleObject\nou: elsewhere\n{where}\n")
        yield slapd, dn
