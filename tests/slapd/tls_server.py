"""A slapd that speaks TLS with whatever certificate it is given, and the authority that issues them."""

import socket
import subprocess
from pathlib import Path

from lab.processes import Process, start, stop
from lab.slapd import Slapd
from lab.waiting import until


class TlsServer:
    """A private slapd that is reached over TCP too, with the certificate of the moment."""

    def __init__(self, slapd: Slapd, authority: Path) -> None:
        self.slapd = slapd
        self.authority = authority
        self.identity = slapd.identities["admin"]
        self.ldap, self.ldaps = _free_port(), _free_port()
        self._process: Process | None = None

    def present(self, certificate: Path, key: Path) -> None:
        """Start, or start anew, with this certificate."""
        self.stop()
        self.slapd.start()
        values = {"CACertificateFile": self.authority, "CertificateFile": certificate, "CertificateKeyFile": key}
        lines = [f"replace: olcTLS{name}\nolcTLS{name}: {value}\n-" for name, value in values.items()]
        lines += ["replace: olcTLSVerifyClient", "olcTLSVerifyClient: try"]
        self.slapd.modify("\n".join(["dn: cn=config", "changetype: modify", *lines, ""]))
        self.slapd.stop()
        urls = f"{self.slapd.uri} ldap://127.0.0.1:{self.ldap} ldaps://127.0.0.1:{self.ldaps}"
        arguments = ["slapd", "-h", urls, "-F", self.slapd.folder / "config", "-d", "0", "-s", "0"]
        process = self._process = start("slapd", arguments, self.slapd.folder / "slapd-tls.log")
        until("slapd with TLS to answer", lambda: _answers(process, self.ldaps), 10)

    def stop(self) -> None:
        self.slapd.stop()
        if self._process is not None:
            stop([self._process])


def _answers(process: Process, port: int) -> bool:
    assert process.alive
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


class Certificates:
    """A private certificate authority, made with the openssl program."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._openssl("req", "-x509", *self._new("ca"), "-subj", "/CN=test authority", "-days", "2")

    def issue(self, name: str, subject: str, names: str, *more: str) -> tuple[Path, Path]:
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\n")
        self._openssl("req", *self._new(name, "csr"), "-subj", subject)
        authority = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", str(extensions))
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *authority, *(more or ("-days", "2"))
        )
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def self_signed(self, name: str) -> tuple[Path, Path]:
        names = ("-addext", "subjectAltName=IP:127.0.0.1")
        self._openssl("req", "-x509", *self._new(name), "-subj", "/CN=127.0.0.1", "-days", "2", *names)
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    @staticmethod
    def _new(name: str, kind: str = "pem") -> tuple[str, ...]:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        return (*curve, "-keyout", f"{name}.key", "-out", f"{name}.{kind}")

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
