"""The smallest directory worth a test: a root entry and one identity, without the shipped tree and access rules."""

from lab.slapd import Slapd, SlapdOptions
from vmkeep.directory.settings import DirectorySettings

SUFFIX = "dc=example,dc=org"
ADMIN = f"cn=admin,{SUFFIX}"
DATABASE = "dn: olcDatabase={1}mdb,cn=config\nchangetype: modify\n"
PLAIN = SlapdOptions(tree=None, configuration=(), synchronous=False)
ROOT_ENTRY = f"dn: {SUFFIX}\nobjectClass: dcObject\nobjectClass: organization\no: example\ndc: example\n\n"
ADMIN_ENTRY = f"dn: {ADMIN}\nobjectClass: organizationalRole\ncn: admin\n\n"


def populate(server: Slapd) -> None:
    """Give the server its root and an identity `admin`, who may log in and read."""
    server.add(ROOT_ENTRY + ADMIN_ENTRY)
    server.give_password("admin", ADMIN)
    login = "olcAccess: {0}to attrs=userPassword by anonymous auth by * none"
    server.modify(f"{DATABASE}replace: olcAccess\n{login}\nolcAccess: {{1}}to * by users read\n")


def settings(server: Slapd, **more: object) -> DirectorySettings:
    """Settings with a short patience; as the root of the machine unless told otherwise."""
    return DirectorySettings.model_validate({"uri": server.uri, "suffix": SUFFIX, "timeout_seconds": 1, **more})
