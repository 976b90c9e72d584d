"""One bound connection to the directory and a pool of them; the only module that speaks to the LDAP client library.

The store borrows connections from a pool, each watch holds one of its own. No exception of the library leaves here.
"""

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import ldap3
from ldap3.core.exceptions import LDAPCommunicationError, LDAPException, LDAPResponseTimeoutError
from ldap3.operation.search import compile_filter, parse_filter
from ldap3.utils.asn1 import encode

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.directory.claims import Changes
from vmkeep.directory.errors import Answer, AnswerLost, Unreachable, error_of
from vmkeep.directory.port import Entry, Scope
from vmkeep.directory.settings import DirectorySettings, read_password

_PAGED_RESULTS = "1.2.840.113556.1.4.319"
_ASSERTION = "1.3.6.1.1.12"  # RFC 4528
_MOST_IDLE = 8  # connections kept open for the next caller
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
_SCOPES = {Scope.BASE: ldap3.BASE, Scope.CHILDREN: ldap3.LEVEL, Scope.SUBTREE: ldap3.SUBTREE}


@dataclass(frozen=True)
class Page:
    """Some entries of a search, and the cookie to ask for more with; empty at the end."""

    answer: Answer
    entries: list[Entry]
    cookie: bytes


class Connection:
    """One bound connection; used by one thread at a time. After an error it is closed and stays so."""

    def __init__(self, settings: DirectorySettings) -> None:
        self.settings = settings
        self.client = _connected(settings)

    @property
    def closed(self) -> bool:
        """Whether nothing can be asked any more."""
        return bool(self.client.closed)

    def is_stale(self) -> bool:
        """Whether the server ended the connection while it was idle: nothing but its good-bye can be readable."""
        poller = select.poll()
        poller.register(self.client.socket, select.POLLIN)
        return bool(poller.poll(0))

    def page(self, base: str, matching: str, scope: Scope, attributes: Sequence[str], cookie: bytes | None) -> Page:
        """One page of a search; without a cookie all of it, or an error where that is more than a page."""
        is_paged = cookie is not None
        answer, entries = self._exchange(
            lambda: self.client.search(
                base,
                matching,
                _SCOPES[scope],
                dereference_aliases=ldap3.DEREF_NEVER,
                attributes=[str(name) for name in attributes] or [ldap3.ALL_ATTRIBUTES],
                time_limit=self.settings.timeout_seconds,
                size_limit=0 if is_paged else self.settings.page_size,
                paged_size=self.settings.page_size if is_paged else None,
                paged_cookie=cookie or None,
            )
        )
        found = [entry_of(raw) for raw in entries or () if raw["type"] == "searchResEntry"]
        paged = answer.get("controls", {}).get(_PAGED_RESULTS, {})
        return Page(answer, found, paged.get("value", {}).get("cookie") or b"")

    def read(self, dn: str, matching: str, attributes: Sequence[str]) -> Page:
        """One entry."""
        answer, entries = self._exchange(
            lambda: self.client.search(
                dn,
                matching,
                ldap3.BASE,
                dereference_aliases=ldap3.DEREF_NEVER,
                attributes=[str(name) for name in attributes] or [ldap3.ALL_ATTRIBUTES],
                time_limit=self.settings.timeout_seconds,
            )
        )
        return Page(answer, [entry_of(raw) for raw in entries or () if raw["type"] == "searchResEntry"], b"")

    def add(self, dn: str, attributes: Mapping[str, list[bytes]]) -> Answer:
        """Ask to add an entry."""
        return self._exchange(lambda: self.client.add(dn, attributes=dict(attributes)))[0]

    def modify(self, dn: str, changes: Changes, asserted: str | None = None) -> Answer:
        """Ask to change an entry, all or nothing, in this order; only where it matches the filter `asserted`."""
        return self._exchange(lambda: self.client.modify(dn, changes, controls=_assertion(asserted)))[0]

    def delete(self, dn: str, asserted: str | None = None) -> Answer:
        """Ask to delete an entry; only where it matches the filter `asserted`."""
        return self._exchange(lambda: self.client.delete(dn, controls=_assertion(asserted)))[0]

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(LDAPException, OSError):
            self.client.strategy.close()

    def _exchange(self, request: Callable[[], Any]) -> tuple[Answer, list[Any] | None]:
        try:
            _, answer, response, _ = request()
        except (LDAPCommunicationError, LDAPResponseTimeoutError) as error:
            self.close()
            raise AnswerLost(f"no answer from the directory {self.settings.uri}: {_words(error)}") from None
        except LDAPException as error:
            self.close()
            raise Refused(ReturnValue.CANNOT_CONNECT_TO_BACKEND, f"cannot ask the directory: {_words(error)}") from None
        except UnicodeError as error:
            self.close()
            raise Refused(
                ReturnValue.INVALID_NAME, f"cannot ask the directory: a name in the question is no UTF-8 text: {error}"
            ) from None
        except BaseException:
            # Interrupted in the middle: what arrives next would be taken for the answer to another question.
            self.close()
            raise
        return answer, response


def entry_of(raw: Mapping[str, Any]) -> Entry:
    """The client's form of an entry in ours. Bytes that are no text survive being written back."""
    attributes = {
        str(name): tuple(value.decode("utf-8", "surrogateescape") for value in values or ())
        for name, values in raw["raw_attributes"].items()
    }
    return Entry(raw["dn"], attributes)


class Pool:
    """Connections kept for the next caller, each held by one caller at a time."""

    def __init__(self, settings: DirectorySettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._idle: list[Connection] = []

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[Connection]:
        """A live connection; it comes back to the pool unless it broke."""
        connection = self._idle_one() or Connection(self._settings)
        try:
            yield connection
        finally:
            self._take_back(connection)

    def close(self) -> None:
        """Hang up every idle connection; those in use follow when they come back broken or idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _idle_one(self) -> Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if not connection.is_stale():
                return connection
            connection.close()

    def _take_back(self, connection: Connection) -> None:
        with self._lock:
            if not connection.closed and len(self._idle) < _MOST_IDLE:
                self._idle.append(connection)
                return
        connection.close()


class _VerifiedTls(ldap3.Tls):  # type: ignore[misc] # the library has no types
    """TLS as Python does it by default, with names verified; the library's own verifies nothing unless told to."""

    def __init__(self, settings: DirectorySettings) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED)
        self.distrust = ""
        self._context = _tls_context(settings)

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:  # noqa: ARG002 - the library's signature
        """Shake hands; remembers why the certificate was not trusted, since the library keeps only words."""
        try:
            connection.socket = self._context.wrap_socket(connection.socket, server_hostname=connection.server.host)
        except ssl.SSLCertVerificationError as error:
            self.distrust = error.verify_message
            raise


def _tls_context(settings: DirectorySettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.certificate_file:
            context.load_cert_chain(settings.certificate_file, settings.key_file)
    except OSError as error:  # ssl.SSLError is one
        files = (
            f"ca_file {settings.ca_file}, certificate_file {settings.certificate_file}, key_file {settings.key_file}"
        )
        raise Refused(
            ReturnValue.CANNOT_CONNECT_TO_BACKEND, f"cannot use the certificates ({files}): {error}"
        ) from None
    return context


def _connected(settings: DirectorySettings) -> Any:
    tls = _VerifiedTls(settings) if settings.uses_tls else None
    client = _client(settings, tls)
    try:
        return _opened(settings, client)
    except LDAPException as error:
        _hang_up(client)
        if tls and tls.distrust:
            raise _distrusted(settings, tls.distrust) from None
        raise Unreachable(f"cannot reach the directory {settings.uri}: {_words(error)}") from None
    except BaseException:
        _hang_up(client)
        raise


def _assertion(asserted: str | None) -> list[tuple[str, bool, bytes]] | None:
    """The control that makes the server look first, in one step with the change; a server without it refuses."""
    if asserted is None:
        return None
    # The library speaks no assertions, but it has all the parts.
    compiled = compile_filter(parse_filter(asserted, None, True, None, None, False).elements[0])
    return [(_ASSERTION, True, encode(compiled))]


def _client(settings: DirectorySettings, tls: _VerifiedTls | None) -> Any:
    # One Server object a connection: the library keeps the address in use on it, which is not safe to share.
    path = settings.socket_path
    server = ldap3.Server(
        f"ldapi://{quote(path, safe='')}" if path else settings.host,
        port=None if path else settings.port,
        use_ssl=settings.tls_from_the_start,
        tls=tls,
        get_info=ldap3.NONE,
        connect_timeout=settings.timeout_seconds,
    )
    return ldap3.Connection(
        server,
        client_strategy=ldap3.SAFE_SYNC,
        receive_timeout=settings.timeout_seconds,
        auto_referrals=False,  # a referral would carry the password to whatever server it names
        auto_range=False,
        return_empty_attributes=False,
        check_names=False,
        auto_escape=False,
        auto_encode=False,
        **_identity(settings),
    )


def _identity(settings: DirectorySettings) -> dict[str, Any]:
    if settings.bind_dn is None or settings.password_file is None:
        return {"authentication": ldap3.SASL, "sasl_mechanism": ldap3.EXTERNAL, "sasl_credentials": ""}
    password = read_password(settings.password_file)
    return {"authentication": ldap3.SIMPLE, "user": settings.bind_dn, "password": password}


def _opened(settings: DirectorySettings, client: Any) -> Any:
    client.open(read_server_info=False)
    if settings.start_tls:
        client.start_tls(read_server_info=False)
    if settings.uses_tls and not isinstance(client.socket, ssl.SSLSocket):
        raise Unreachable(f"the directory {settings.uri} did not start TLS; nothing was sent to it")
    _keep_alive(client.socket)
    bound, answer, *_ = client.bind(read_server_info=False)
    if not bound:
        who = settings.bind_dn or "SASL EXTERNAL"
        raise error_of(answer, f"the directory {settings.uri} refuses to bind {who}")
    return client


def _keep_alive(connected: socket.socket) -> None:
    if connected.family == socket.AF_UNIX:
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _distrusted(settings: DirectorySettings, reason: str) -> Refused:
    return Refused(
        ReturnValue.CANNOT_CONNECT_TO_BACKEND,
        f"the certificate of the directory {settings.uri} is not trusted: {reason}; "
        f"nothing was sent. Check the server's certificate and name, and ca_file ({settings.ca_file or 'system'})",
    )


def _hang_up(client: Any) -> None:
    with contextlib.suppress(LDAPException, OSError):
        client.strategy.close()


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
