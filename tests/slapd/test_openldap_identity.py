"""Who we are to the server and who it is to us: password files, settings, TLS; a wrong server is sent nothing."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from lab.slapd import Slapd
from tests.conftest import SlapdFactory, require
from tests.slapd.eavesdropper import Eavesdropper
from tests.slapd.small_directory import ADMIN, PLAIN, SUFFIX, populate, settings
from tests.slapd.tls_server import Certificates, TlsServer
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.directory import open_store
from vmkeep.directory.port import ANYTHING
from vmkeep.directory.settings import DirectorySettings, read_password


@pytest.fixture(scope="module")
def server(slapd_factory: SlapdFactory) -> Slapd:
    server = slapd_factory(PLAIN)
    populate(server)
    return server


# identity


def test_a_password_file_serves_with_or_without_a_newline(server: Slapd, tmp_path: Path) -> None:
    identity = server.identities["admin"]
    with_newline = tmp_path / "password"
    with_newline.touch(0o600)
    with_newline.write_text(identity.password_file.read_text() + "\n")
    for file in (identity.password_file, with_newline):
        store = open_store(settings(server, bind_dn=identity.dn, password_file=file))
        assert store.read(SUFFIX) is not None
        store.close()


@pytest.mark.parametrize(
    ("mode", "allowed"), [(0o600, True), (0o400, True), (0o644, False), (0o660, False), (0o640, False)]
)
def test_a_password_file_others_may_read_is_refused(tmp_path: Path, mode: int, allowed: bool) -> None:
    file = tmp_path / "password"
    file.write_text("secret\n")
    file.chmod(mode)
    if allowed:
        assert read_password(file) == "secret"
        return
    with pytest.raises(Refused, match=f"{file} has mode {mode:04o}; run: chmod 0600"):
        read_password(file)


def test_a_password_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    require([] if os.geteuid() == 0 else ["giving a file away needs root: run the tests with sudo"])
    file = tmp_path / "password"
    file.touch(0o600)
    os.chown(file, 12345, -1)
    with pytest.raises(Refused, match="belongs to user 12345"):
        read_password(file)


def test_a_password_file_that_is_none_is_refused(tmp_path: Path) -> None:
    empty, pipe = tmp_path / "empty", tmp_path / "pipe"
    empty.touch(0o600)
    os.mkfifo(pipe, 0o600)
    for file, reason in [(empty, "is empty"), (pipe, "regular"), (tmp_path, "regular"), (tmp_path / "no", "No such")]:
        with pytest.raises(Refused, match=reason):
            read_password(file)


def test_a_wrong_password_is_refused_and_named_nowhere(server: Slapd, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text("not-the-password")
    store = open_store(settings(server, bind_dn=ADMIN, password_file=file))
    with pytest.raises(Refused, match=f"refuses to bind {ADMIN}.*invalidCredentials") as refusal:
        store.read(SUFFIX)
    assert "not-the-password" not in str(refusal.value)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"uri": "ldap://ldap.example.org"}, "in the clear"),
        ({"uri": "ldap://ldap.example.org", "bind_dn": ADMIN, "password_file": "/x"}, "in the clear"),
        ({"uri": "http://ldap.example.org"}, "must begin with"),
        ({"uri": "ldaps://"}, "must be a host"),
        ({"uri": "ldaps://h/dc=x"}, "must be a host"),
        ({"uri": "ldaps://h", "start_tls": True}, "start_tls is for"),
        ({"uri": "ldaps://h"}, "no identity"),
        ({"uri": "ldapi:///", "bind_dn": ADMIN}, "belong together"),
        ({"uri": "ldaps://h", "certificate_file": "/x"}, "belong together"),
        ({"uri": "ldapi:///", "timeout": 3}, "timeout"),
    ],
)
def test_settings_that_would_be_unsafe_or_unclear_are_refused(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        DirectorySettings.model_validate({"suffix": SUFFIX, **wrong})


# TLS


@pytest.fixture(scope="module")
def tls_server(slapd_factory: SlapdFactory, certificates: Certificates) -> Iterator[TlsServer]:
    slapd = slapd_factory(PLAIN)
    populate(slapd)
    rule = f'olcAuthzRegexp: {{0}}"^cn=admin$" "{ADMIN}"'
    slapd.modify(f"dn: cn=config\nchangetype: modify\nreplace: olcAuthzRegexp\n{rule}\n")
    server = TlsServer(slapd, certificates.folder / "ca.pem")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def good(tls_server: TlsServer, certificates: Certificates) -> TlsServer:
    tls_server.present(*certificates.issue("good", "/CN=server", "IP:127.0.0.1"))
    return tls_server


def _tls_settings(server: TlsServer, **more: object) -> DirectorySettings:
    how: dict[str, object] = {"bind_dn": server.identity.dn, "password_file": server.identity.password_file}
    how |= {"uri": f"ldaps://127.0.0.1:{server.ldaps}", "ca_file": server.authority}
    return settings(server.slapd, **{**how, **more})


def _reads(settings: DirectorySettings) -> bool:
    store = open_store(settings)
    try:
        return all(store.read(SUFFIX) is not None for _ in range(3))
    finally:
        store.close()


def test_a_server_with_a_trusted_certificate_is_used(good: TlsServer) -> None:
    assert _reads(_tls_settings(good))


def test_start_tls_comes_before_the_password(good: TlsServer) -> None:
    uri = f"ldap://127.0.0.1:{good.ldap}"
    assert _reads(_tls_settings(good, uri=uri, start_tls=True))


def test_a_client_certificate_is_an_identity(good: TlsServer, certificates: Certificates) -> None:
    pair = certificates.issue("client", "/CN=admin", "DNS:client.example.org")
    who = {"bind_dn": None, "password_file": None, "certificate_file": pair[0], "key_file": pair[1]}
    assert _reads(_tls_settings(good, **who))


def test_a_tls_connection_is_used_again_and_watched(good: TlsServer) -> None:
    store = open_store(_tls_settings(good))
    woken = threading.Event()
    with store.watch(SUFFIX, ANYTHING, woken.set):
        assert woken.wait(5)
        woken.clear()
        good.slapd.modify(f"dn: {ADMIN}\nchangetype: modify\nreplace: description\ndescription: {time.time()}\n")
        assert woken.wait(5)
    store.close()


def _expired(certificates: Certificates) -> tuple[Path, Path]:
    return certificates.issue("expired", "/CN=server", "IP:127.0.0.1", "-days", "-1")


def _misnamed(certificates: Certificates) -> tuple[Path, Path]:
    return certificates.issue("misnamed", "/CN=127.0.0.1", "DNS:other.example.org")


def test_several_reads_go_over_one_tls_connection(good: TlsServer) -> None:
    ear = Eavesdropper(good.ldaps)  # takes one connection and no more
    assert _reads(_tls_settings(good, uri=f"ldaps://127.0.0.1:{ear.port}"))
    assert 0x17 in _record_types(b"".join(ear.close()))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda certificates: certificates.self_signed("self"), "self.signed"),
        (_misnamed, "not valid for '127.0.0.1'"),
        (_expired, "expired"),
    ],
    ids=["self-signed", "of another host", "expired"],
)
@pytest.mark.parametrize("start_tls", [False, True], ids=["ldaps", "start_tls"])
def test_a_server_that_cannot_be_trusted_is_sent_nothing(
    tls_server: TlsServer,
    certificates: Certificates,
    make: Callable[[Certificates], tuple[Path, Path]],
    reason: str,
    start_tls: bool,
) -> None:
    tls_server.present(*make(certificates))
    ear = Eavesdropper(tls_server.ldap if start_tls else tls_server.ldaps)
    uri = f"{'ldap' if start_tls else 'ldaps'}://127.0.0.1:{ear.port}"
    store = open_store(_tls_settings(tls_server, uri=uri, start_tls=start_tls))
    with pytest.raises(Refused, match=f"not trusted: .*{reason}.*nothing was sent"):
        store.read(SUFFIX)
    heard = b"".join(ear.close())
    assert ADMIN.encode() not in heard
    assert tls_server.identity.password_file.read_bytes() not in heard
    assert 0x17 not in _record_types(heard)  # no TLS record with application data: no bind


def _record_types(heard: bytes) -> set[int]:
    """Content types of the TLS records; a plain LDAP message before them (StartTLS) is passed over."""
    position = 2 + heard[1] if heard[:1] == b"\x30" else 0
    types = set()
    while position + 5 <= len(heard):
        types.add(heard[position])
        position += 5 + int.from_bytes(heard[position + 3 : position + 5])
    return types


def test_a_server_without_start_tls_is_sent_no_password(server: Slapd, tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []

    def refuse() -> None:
        client, _ = listener.accept()
        with client:
            heard.append(client.recv(65536))
            # extendedResp: protocolError, no TLS here
            client.sendall(bytes.fromhex("300c02010178070a010204000400"))
            heard.append(client.recv(65536))

    refusing = threading.Thread(target=refuse, daemon=True)
    refusing.start()
    identity = server.identities["admin"]
    uri = f"ldap://127.0.0.1:{listener.getsockname()[1]}"
    how = {"bind_dn": identity.dn, "password_file": identity.password_file, "start_tls": True}
    with pytest.raises(TryLater):
        open_store(settings(server, uri=uri, **how)).read(SUFFIX)
    refusing.join(5)
    listener.close()
    assert identity.password_file.read_bytes() not in b"".join(heard)


def test_certificates_that_cannot_be_read_are_refused_by_name(server: Slapd, tmp_path: Path) -> None:
    identity = server.identities["admin"]
    how = {"bind_dn": identity.dn, "password_file": identity.password_file, "ca_file": tmp_path / "no-ca.pem"}
    with pytest.raises(Refused, match=r"no-ca\.pem"):
        open_store(settings(server, uri="ldaps://127.0.0.1:1", **how)).read(SUFFIX)
