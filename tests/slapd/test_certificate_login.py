"""The shipped ldif/tls.ldif: a node's certificate is the node, and no other subject is."""

from collections.abc import Iterator

import pytest

from lab.slapd import REPOSITORY, SlapdOptions
from tests.conftest import SlapdFactory
from tests.slapd.tls_server import Certificates, TlsServer
from vmkeep.contract.names import Attribute, Tree
from vmkeep.directory import open_store
from vmkeep.directory.settings import DirectorySettings

TREE = Tree("dc=example,dc=org")
NODE = "node-01.example.org"


@pytest.fixture(scope="module")
def tls_server(slapd_factory: SlapdFactory, certificates: Certificates) -> Iterator[TlsServer]:
    slapd = slapd_factory(SlapdOptions(synchronous=False))
    slapd.add((REPOSITORY / "ldif/node.ldif").read_text())
    server = TlsServer(slapd, certificates.folder / "ca.pem")
    certificate, key = certificates.issue("server", "/CN=server", "IP:127.0.0.1")
    server.present(certificate, key)
    text = (REPOSITORY / "ldif/tls.ldif").read_text().replace("/etc/ldap/tls", str(certificates.folder))
    slapd.modify(text)
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("subject", "own_entry"),
    [
        (f"/O=example/OU=nodes/CN={NODE}", TREE.node(NODE)),
        ("/O=example/OU=administration/CN=controller", "cn=controller,ou=administration,dc=example,dc=org"),
        (f"/O=example/OU=elsewhere/CN={NODE}", None),
        (f"/O=example/OU=nodes/OU=more/CN={NODE}", None),
        (f"/O=another/OU=nodes/CN={NODE}", None),
        (f"/CN={NODE}", None),
        ("/O=example/OU=administration/CN=root", None),
    ],
)
def test_a_certificate_is_the_identity_of_its_subject_and_of_no_other(
    tls_server: TlsServer, certificates: Certificates, subject: str, own_entry: str | None
) -> None:
    certificate, key = certificates.issue("client", subject, "DNS:client.example.org")
    how = {"uri": f"ldaps://127.0.0.1:{tls_server.ldaps}", "suffix": TREE.suffix, "ca_file": tls_server.authority}
    how |= {"certificate_file": certificate, "key_file": key}
    store = open_store(DirectorySettings.model_validate(how))

    node = store.read(TREE.node(NODE))
    own = store.read(own_entry) if own_entry else None
    store.close()

    assert (own is not None) is (own_entry is not None)
    assert (node is not None) is (own_entry is not None)  # the node reads itself, the controller reads all
    assert node is None or node.first(Attribute.NODE) == NODE
