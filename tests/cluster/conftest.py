"""One lab for this folder: two nodes with agents and no controller; tests add machines of their own."""

from collections.abc import Iterator

import pytest

from lab.cluster import Lab, LabOptions
from tests.cluster.plain import Plain
from tests.conftest import ClusterFactory


@pytest.fixture(scope="package")
def agents(cluster: ClusterFactory) -> Iterator[Lab]:
    lab = cluster(LabOptions(nodes=2, machines=0, agents=True))
    yield lab
    lab.down()


@pytest.fixture
def plain(agents: Lab) -> Plain:
    return Plain(agents)
