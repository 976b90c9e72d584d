"""A private OpenLDAP server with vmkeep's schema, tree and access rules; for the cluster, and alone for tests.

Administered over its socket as the account that started it (SASL EXTERNAL), which is the root DN of every database here
and no identity of the tree.
"""

import base64
import hashlib
import os
import secrets
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lab import programs, sockets
from lab.errors import LabError
from lab.processes import Process, start, stop
from lab.waiting import until

REPOSITORY = Path(__file__).parent.parent
SHIPPED_SUFFIX = "dc=example,dc=org"
OWNER = f"gidNumber={os.getegid()}+uidNumber={os.geteuid()},cn=peercred,cn=external,cn=auth"
AUDIT_SUFFIX = "cn=accesslog"
_FOLDERS = ("config", "data", "audit", "passwords")


@dataclass(frozen=True)
class SlapdOptions:
    """How it is set up. `audit` keeps each successful write in cn=accesslog; not `synchronous` is for speed."""

    suffix: str = SHIPPED_SUFFIX
    audit: bool = False
    watchable: bool = True
    synchronous: bool = True
    schemas: tuple[Path, ...] = (REPOSITORY / "schema/sst.ldif", REPOSITORY / "schema/vmkeep.ldif")
    tree: Path | None = REPOSITORY / "ldif/base.ldif"
    configuration: tuple[Path, ...] = (REPOSITORY / "ldif/access.ldif", REPOSITORY / "ldif/indexes.ldif")


@dataclass(frozen=True)
class Identity:
    """Who binds: a DN and the file that holds its password, 0600, without a newline."""

    dn: str
    password_file: Path


class Slapd:
    """One server below one folder."""

    def __init__(self, folder: Path, options: SlapdOptions | None = None) -> None:
        self.folder = folder
        self.options = options or SlapdOptions()
        self.identities: dict[str, Identity] = {}
        self.process: Process | None = None
        self.sockets = sockets.socket_folder(folder)

    @property
    def suffix(self) -> str:
        """The suffix of the data tree."""
        return self.options.suffix

    @property
    def socket(self) -> Path:
        """The server's Unix socket."""
        return self.sockets / "ldapi"

    @property
    def uri(self) -> str:
        """The ldapi URI of the socket."""
        return f"ldapi://{quote(str(self.socket), safe='')}"

    def create(self, started: Callable[[Process], None] = lambda _process: None) -> None:
        """Lay out configuration and data, start, and give the identities admin and controller their passwords.

        `started` hears of the process before anything else can fail.
        """
        for name in _FOLDERS:
            (self.folder / name).mkdir(parents=True, mode=0o700)
        self.sockets.mkdir(mode=0o700)
        self._load(0, self._configuration())
        if self.options.tree is not None:
            self._load(1, self.shipped(self.options.tree))
        self.start(started)
        for path in self.options.configuration:
            self.modify(self.shipped(path))
        for name in ("admin", "controller") if self.options.tree is not None else ():
            self.give_password(name, f"cn={name},ou=administration,{self.suffix}")

    def start(self, started: Callable[[Process], None] = lambda _process: None) -> Process:
        """Start the server on what lies in the folder; returns when it answers."""
        arguments: list[str | Path] = ["slapd", "-h", self.uri, "-F", self.folder / "config", "-d", "0", "-s", "0"]
        process = self.process = start("slapd", arguments, self.folder / "slapd.log")
        started(process)
        until(f"slapd in {self.folder} to answer, see slapd.log there", lambda: self._answers(process), 20, 0.01)
        return process

    def stop(self) -> None:
        """Stop the server; its data stays."""
        if self.process is not None:
            stop([self.process])

    def kill(self) -> None:
        """End the server as a crash would."""
        if self.process is not None:
            stop([self.process], grace=0)

    def remove(self) -> None:
        """End the server and remove all it has."""
        self.kill()
        sockets.clear(self.folder)
        for name in (*_FOLDERS, "slapd.log"):
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def pause(self) -> None:
        """Let the server hang: it accepts, and answers nothing, until `unpause`."""
        if self.process is not None:
            self.process.kill(signal.SIGSTOP)
            tasks = Path(f"/proc/{self.process.pid}/task")
            # A thread that is running stops a moment later, and may answer until then.
            until("slapd to stand still", lambda: all(map(_is_stopped, tasks.iterdir())), 10, 0.001)

    def unpause(self) -> None:
        """Let a paused server go on."""
        if self.process is not None:
            self.process.kill(signal.SIGCONT)

    def set_database(self, attribute: str, value: str) -> None:
        """Set one attribute of the data's database, such as olcReadOnly; it holds at once."""
        name = "olcDatabase={1}mdb,cn=config"
        self.modify(f"dn: {name}\nchangetype: modify\nreplace: {attribute}\n{attribute}: {value}\n")

    def add(self, ldif: str, identity: Identity | None = None) -> None:
        """Add entries, as the server's owner or as an identity."""
        programs.run(["ldapadd", *self._login(identity)], text=ldif)

    def modify(self, ldif: str, identity: Identity | None = None) -> None:
        """Apply change records, as the server's owner or as an identity."""
        programs.run(["ldapmodify", *self._login(identity)], text=ldif)

    def delete(self, dn: str, identity: Identity | None = None) -> None:
        """Delete an entry and everything below it."""
        programs.run(["ldapdelete", "-r", *self._login(identity), dn])

    def search(
        self, base: str, matching: str = "(objectClass=*)", scope: str = "sub", *attributes: str
    ) -> list[dict[str, list[str]]]:
        """Entries as the server's owner sees them, attribute names as sent, `dn` among them."""
        arguments = ["ldapsearch", *self._login(None), "-LLL", "-o", "ldif-wrap=no", "-b", base, "-s", scope, matching]
        return _entries(programs.run([*arguments, *attributes]))

    def give_password(self, name: str, dn: str) -> Identity:
        """A new random password for an existing entry, kept in a file only its owner reads."""
        password = secrets.token_urlsafe(24)
        path = self.folder / "passwords" / name
        path.touch(mode=0o600)
        path.write_text(password)
        [entry] = self.search(dn, "(objectClass=*)", "base", "objectClass")
        change = f"dn: {dn}\nchangetype: modify\n"
        if "simpleSecurityObject" not in entry["objectClass"]:
            change += "add: objectClass\nobjectClass: simpleSecurityObject\n-\n"
        self.modify(f"{change}replace: userPassword\nuserPassword: {_hashed(password)}\n")
        identity = self.identities[name] = Identity(dn, path)
        return identity

    def history(self, below: str | None = None) -> list[dict[str, list[str]]]:
        """Every successful write in order (reqStart, reqType, reqDN, reqAuthzID, reqMod…); only with `audit`."""
        if not self.options.audit:
            raise LabError("this slapd keeps no history; create it with SlapdOptions(audit=True)")
        entries = self.search(AUDIT_SUFFIX, "(objectClass=auditWriteObject)", "one")
        wanted = (below or self.suffix).casefold()
        found = [entry for entry in entries if entry["reqDN"][0].casefold().endswith(wanted)]
        return sorted(found, key=lambda entry: entry["reqStart"][0])

    def shipped(self, path: Path) -> str:
        """A file of the repository, for this server's suffix."""
        text = path.read_text(encoding="utf-8")
        if self.suffix == SHIPPED_SUFFIX:
            return text
        root = f"dn: {SHIPPED_SUFFIX}\n"
        head, found, rest = text.partition(root)
        if found:
            text = head + _root_entry(self.suffix) + "\n\n" + rest.partition("\n\n")[2]
        return text.replace(SHIPPED_SUFFIX, self.suffix)

    def _login(self, identity: Identity | None) -> list[str]:
        if identity is None:
            return ["-H", self.uri, "-Q", "-Y", "EXTERNAL"]
        return ["-H", self.uri, "-x", "-D", identity.dn, "-y", str(identity.password_file)]

    def _answers(self, process: Process) -> bool:
        if not process.alive:
            raise LabError(f"slapd ended while starting: {(self.folder / 'slapd.log').read_text().strip()[-600:]}")
        if not self.socket.exists():
            return False
        try:
            programs.run(["ldapwhoami", *self._login(None)], limit=5)
        except LabError:
            return False
        return True

    def _load(self, database: int, ldif: str) -> None:
        quick = ["-q", "-w"] if database else []
        arguments: list[str | Path] = ["slapadd", "-n", str(database), "-F", self.folder / "config", *quick]
        programs.run(arguments, text=ldif)

    def _configuration(self) -> str:
        modules = [
            "back_mdb",
            *(["syncprov"] if self.options.watchable else []),
            *(["accesslog"] if self.options.audit else []),
        ]
        parts = [
            f"dn: cn=config\nobjectClass: olcGlobal\ncn: config\nolcPidFile: {self.folder}/slapd.pid\n"
            "olcAuthzPolicy: none\nolcToolThreads: 1\nolcThreads: 8",
            "dn: cn=module,cn=config\nobjectClass: olcModuleList\ncn: module\nolcModulePath: /usr/lib/ldap\n"
            + "\n".join(f"olcModuleLoad: {name}" for name in modules),
            "dn: cn=schema,cn=config\nobjectClass: olcSchemaConfig\ncn: schema",
            *(f"include: file:///etc/ldap/schema/{name}.ldif" for name in ("core", "cosine", "inetorgperson")),
            *(path.read_text(encoding="utf-8").strip() for path in self.options.schemas),
            "dn: olcDatabase={-1}frontend,cn=config\nobjectClass: olcDatabaseConfig\nobjectClass: olcFrontendConfig\n"
            "olcDatabase: {-1}frontend\nolcSizeLimit: unlimited\n"
            'olcAccess: to dn.base="" by * read\nolcAccess: to dn.base="cn=subschema" by * read',
            "dn: olcDatabase={0}config,cn=config\nobjectClass: olcDatabaseConfig\nolcDatabase: {0}config\n"
            f'olcRootDN: {OWNER}\nolcAccess: to * by dn.exact="{OWNER}" manage by * none',
            self._database(1, self.suffix, "data"),
        ]
        if self.options.audit:
            parts.append(self._database(2, AUDIT_SUFFIX, "audit") + "\nolcAccess: to * by * none")
        return "\n\n".join([*parts, *self._overlays(), ""])

    def _database(self, number: int, suffix: str, folder: str) -> str:
        flags = "" if self.options.synchronous else "\nolcDbNoSync: TRUE"
        return (
            f"dn: olcDatabase={{{number}}}mdb,cn=config\nobjectClass: olcDatabaseConfig\nobjectClass: olcMdbConfig\n"
            f"olcDatabase: {{{number}}}mdb\nolcSuffix: {suffix}\nolcRootDN: {OWNER}\n"
            f"olcDbDirectory: {self.folder}/{folder}\nolcDbMaxSize: {1 << 30}{flags}"
        )

    def _overlays(self) -> list[str]:
        overlays = []
        if self.options.watchable:
            overlays.append(
                "dn: olcOverlay={0}syncprov,olcDatabase={1}mdb,cn=config\nobjectClass: olcOverlayConfig\n"
                "objectClass: olcSyncProvConfig\nolcOverlay: {0}syncprov\nolcSpCheckpoint: 1 1"
            )
        if self.options.audit:
            overlays.append(
                f"dn: olcOverlay={{{len(overlays)}}}accesslog,olcDatabase={{1}}mdb,cn=config\n"
                "objectClass: olcOverlayConfig\nobjectClass: olcAccessLogConfig\n"
                f"olcOverlay: {{{len(overlays)}}}accesslog\n"
                f"olcAccessLogDB: {AUDIT_SUFFIX}\nolcAccessLogOps: writes\nolcAccessLogSuccess: TRUE"
            )
        return overlays


def _is_stopped(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"


def _hashed(password: str) -> str:
    salt = os.urandom(8)
    digest = hashlib.sha1(password.encode() + salt).digest()  # {SSHA} is what slapd knows without a module
    return "{SSHA}" + base64.b64encode(digest + salt).decode()


def _root_entry(suffix: str) -> str:
    attribute, _, value = suffix.partition(",")[0].partition("=")
    classes = {"dc": "dcObject", "o": "organization", "ou": "organizationalUnit", "c": "country"}
    if attribute not in classes:
        raise LabError(f"the suffix {suffix} must begin with dc=, o=, ou= or c=")
    lines = [f"dn: {suffix}", "objectClass: top", f"objectClass: {classes[attribute]}", f"{attribute}: {value}"]
    return "\n".join([*lines, *(["objectClass: organization", f"o: {value}"] if attribute == "dc" else [])])


def _entries(ldif: str) -> list[dict[str, list[str]]]:
    entries = []
    for block in ldif.strip().split("\n\n"):
        entry: dict[str, list[str]] = {}
        for line in filter(None, block.splitlines()):
            name, _, value = line.partition(":")
            plain = base64.b64decode(value[1:]).decode() if value.startswith(":") else value.lstrip(" ")
            entry.setdefault(name, []).append(plain)
        if entry:
            entries.append(entry)
    return entries
