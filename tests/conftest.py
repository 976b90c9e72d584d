"""Fixtures that start real servers: a private slapd, and whole labs; all are ended and removed with the session."""

import os
from collections.abc import Callable, Iterator

import pytest

from lab import programs
from lab.cluster import Lab, LabOptions
from lab.slapd import Slapd, SlapdOptions

SlapdFactory = Callable[..., Slapd]
ClusterFactory = Callable[..., Lab]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-faults", action="store_true", help="kill at every boundary, not at a selection of them")
    parser.addoption(
        "--all-methods", action="store_true", help="every combination of method and machine, not every pair"
    )


def require(reasons: list[str]) -> None:
    """Skip where something is missing on a laptop, with the reasons; fail in CI, where nothing may be missing."""
    if not reasons:
        return
    text = "; ".join(reasons)
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have everything: {text}")
    pytest.skip(text)


def _missing(names: tuple[str, ...]) -> list[str]:
    return [f"the program {name} is not installed (lab/packages.sh installs it)" for name in programs.missing(names)]


@pytest.fixture(scope="session")
def slapd_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlapdFactory]:
    """Starts another private slapd on each call: `slapd_factory(SlapdOptions(audit=True))`."""
    require(_missing(programs.DIRECTORY_PROGRAMS))
    started: list[Slapd] = []

    def start(options: SlapdOptions | None = None) -> Slapd:
        server = Slapd(tmp_path_factory.mktemp("slapd"), options)
        started.append(server)
        server.create()
        return server

    yield start
    for server in started:
        server.remove()


@pytest.fixture(scope="module")
def slapd(slapd_factory: SlapdFactory) -> Slapd:
    """A private slapd with schema, tree and access rules, fresh for each module; keeps a history of all writes."""
    return slapd_factory(SlapdOptions(audit=True))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterFactory]:
    """Starts another lab on each call: `cluster(LabOptions(nodes=2))`; take it `down` when it is no longer needed."""
    rights = [] if os.geteuid() == 0 else ["a lab needs root: run the tests with sudo"]
    names = (*programs.DIRECTORY_PROGRAMS, *programs.NODE_PROGRAMS, *programs.GUEST_PROGRAMS)
    require([*rights, *_missing(names)])
    started: list[Lab] = []

    def start(options: LabOptions | None = None) -> Lab:
        lab = Lab(tmp_path_factory.mktemp("lab"), options)
        started.append(lab)
        lab.up()
        return lab

    yield start
    for lab in started:
        lab.down()


@pytest.fixture(scope="session")
def lab(cluster: ClusterFactory) -> Lab:
    """One lab of two nodes for the session, without machines and agents; a test adds what it needs, with own names."""
    return cluster(LabOptions(nodes=2, machines=0))
