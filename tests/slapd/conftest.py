"""What several modules here start with: a directory with one node, and in it machines that have two good backups."""

from collections.abc import Iterator

import pytest

from lab import programs
from lab.slapd import SlapdOptions
from tests.conftest import SlapdFactory, require
from tests.slapd.cluster_of_peers import ClusterOfPeers
from tests.slapd.console_driver import new_machine
from tests.slapd.identities import Directory
from tests.slapd.tls_server import Certificates


@pytest.fixture(scope="module")
def cluster_of_peers(slapd_factory: SlapdFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOfPeers]:
    """The node n1 and no machine, fresh for each module; keeps a history of all writes."""
    server = slapd_factory(SlapdOptions(audit=True, synchronous=False))
    cluster = ClusterOfPeers(server, tmp_path_factory.mktemp("peers"))
    cluster.add_node("n1")
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(cluster_of_peers: ClusterOfPeers) -> ClusterOfPeers:
    """The same one for each test of a module."""
    return cluster_of_peers


@pytest.fixture
def emptied(cluster_of_peers: ClusterOfPeers) -> Iterator[None]:
    """Leaves the next test of a module a server without machines, and no process."""
    yield
    cluster_of_peers.empty()


@pytest.fixture
def machine(cluster: ClusterOfPeers) -> str:
    """A machine that no other test has."""
    return new_machine(cluster)


@pytest.fixture(scope="module")
def standing(slapd_factory: SlapdFactory) -> Directory:
    """A directory with every identity and target, for a module."""
    return Directory(slapd_factory(SlapdOptions(synchronous=False)))


@pytest.fixture
def directory(standing: Directory) -> Iterator[Directory]:
    """The directory, for a test that may change anything in it."""
    yield standing
    standing.restore()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    require([f"the program {name} is not installed" for name in programs.missing(("openssl",))])
    return Certificates(tmp_path_factory.mktemp("certificates"))
