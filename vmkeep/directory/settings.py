"""How to reach the directory and as whom; a part of every program's settings file, read by the store and its watch."""

import os
import stat
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused

_DEFAULT_SOCKET = "/var/run/slapd/ldapi"
_ALLOWED_MODES = (0o600, 0o400)
_LONGEST_PASSWORD = 4096  # bytes; a larger file is not a password


class DirectorySettings(BaseModel):
    """The directory's address, the tree's suffix, the identity, and the limits of patience. Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: Annotated[
        str, Field(description="ldapi://%2Fpath%2Fto%2Fsocket, ldaps://host, or ldap://host together with start_tls")
    ]
    suffix: Annotated[str, Field(min_length=3, description="what the tree hangs below, such as dc=example,dc=org")]
    bind_dn: Annotated[
        str | None,
        Field(description="who to bind as; without it SASL EXTERNAL: the account (ldapi) or the certificate"),
    ] = None
    password_file: Annotated[Path | None, Field(description="file with the password of bind_dn, mode 0600 or 0400")] = (
        None
    )
    ca_file: Annotated[
        Path | None, Field(description="certificates that may vouch for the server; default: system's")
    ] = None
    certificate_file: Annotated[Path | None, Field(description="our own certificate, for SASL EXTERNAL over TLS")] = (
        None
    )
    key_file: Annotated[Path | None, Field(description="the key of certificate_file")] = None
    start_tls: Annotated[bool, Field(description="start TLS on an ldap:// connection before anything else is sent")] = (
        False
    )
    timeout_seconds: Annotated[
        int, Field(ge=1, le=600, description="how long one answer of the directory may take; a lost answer doubles it")
    ] = 10
    page_size: Annotated[int, Field(ge=1, le=10000, description="entries asked for at a time")] = 500
    poll_seconds: Annotated[
        float, Field(gt=0, le=3600, description="how often to look where the server does not notify (no syncprov)")
    ] = 1.0
    probe_seconds: Annotated[
        float, Field(gt=0, le=3600, description="silence after which a watch asks the server whether it is still there")
    ] = 30.0

    @field_validator("uri")
    @classmethod
    def _known_uri(cls, uri: str) -> str:
        parts = urlsplit(uri)
        if parts.scheme not in ("ldap", "ldaps", "ldapi"):
            raise ValueError(f"the directory's uri {uri!r} must begin with ldapi://, ldaps:// or ldap://")
        if parts.scheme != "ldapi" and (not parts.hostname or parts.path not in ("", "/") or parts.query):
            raise ValueError(
                f"the directory's uri {uri!r} must be a host and at most a port, such as ldaps://ldap.example.org"
            )
        if parts.scheme != "ldapi":
            _ = parts.port  # raises ValueError where it is no number
        return uri

    @model_validator(mode="after")
    def _nothing_in_the_clear(self) -> Self:
        if self._parts.scheme == "ldap" and not self.start_tls:
            raise ValueError(f"{self.uri} would send everything in the clear: use ldaps://, ldapi:// or start_tls")
        if self._parts.scheme != "ldap" and self.start_tls:
            raise ValueError(f"start_tls is for ldap:// only, and the uri is {self.uri}: remove it")
        return self

    @model_validator(mode="after")
    def _whole_identity(self) -> Self:
        if (self.bind_dn is None) != (self.password_file is None):
            raise ValueError("bind_dn and password_file belong together: give both, or neither for SASL EXTERNAL")
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together: give both or neither")
        if self.bind_dn is None and self.socket_path is None and self.certificate_file is None:
            raise ValueError(
                f"no identity for {self.uri}: give bind_dn and password_file, or certificate_file and key_file"
            )
        return self

    @property
    def _parts(self) -> SplitResult:
        return urlsplit(self.uri)

    @property
    def socket_path(self) -> str | None:
        """The socket of an ldapi uri; None where the server is reached over the network."""
        if self._parts.scheme != "ldapi":
            return None
        return unquote(self._parts.netloc) or unquote(self._parts.path.strip("/")) or _DEFAULT_SOCKET

    @property
    def host(self) -> str:
        """The server's name, which its certificate must carry."""
        return self._parts.hostname or ""

    @property
    def port(self) -> int:
        """The server's port."""
        return self._parts.port or (636 if self.tls_from_the_start else 389)

    @property
    def tls_from_the_start(self) -> bool:
        """Whether the connection begins with TLS (ldaps)."""
        return self._parts.scheme == "ldaps"

    @property
    def uses_tls(self) -> bool:
        """Whether a certificate is verified at all; not on a local socket."""
        return self.socket_path is None


def read_password(file: Path) -> str:
    """The password a file holds, without one trailing newline; Refused where others could read the file."""
    try:
        # O_NONBLOCK: opening a named pipe by mistake must not hang.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _refused(file, f"cannot be read: {error.strerror}") from None
    try:
        _check(file, os.fstat(descriptor))
        return _password(file, os.read(descriptor, _LONGEST_PASSWORD + 1))
    finally:
        os.close(descriptor)


def _check(file: Path, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise _refused(file, "is not a regular file")
    if mode not in _ALLOWED_MODES:
        raise _refused(file, f"has mode {mode:04o}; run: chmod 0600 {file}")
    if status.st_uid not in (0, os.geteuid()):
        raise _refused(file, f"belongs to user {status.st_uid}; it must belong to root or to user {os.geteuid()}")


def _password(file: Path, content: bytes) -> str:
    if len(content) > _LONGEST_PASSWORD:
        raise _refused(file, f"is longer than {_LONGEST_PASSWORD} bytes")
    try:
        password = content.removesuffix(b"\n").decode()
    except UnicodeDecodeError:
        raise _refused(file, "is not UTF-8 text") from None
    if not password:
        # A bind with an empty password succeeds as nobody on some servers (RFC 4513 §5.1.2).
        raise _refused(file, "is empty")
    return password


def _refused(file: Path, reason: str) -> Refused:
    return Refused(ReturnValue.CANNOT_CONNECT_TO_BACKEND, f"the directory's password file {file} {reason}")
