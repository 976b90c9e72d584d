"""The store on a real server and its twin in memory; each test here runs on both."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.slapd.conformance.entries import NUMBERS, PAGE, add_unit
from tests.slapd.small_directory import PLAIN, ROOT_ENTRY, SUFFIX
from vmkeep.directory import open_store
from vmkeep.directory.memory import MemoryStore
from vmkeep.directory.port import Store
from vmkeep.directory.settings import DirectorySettings


@dataclass(frozen=True)
class Bench:
    """A store, and how to take its server away and bring it back."""

    store: Store
    go_away: Callable[[], None]
    come_back: Callable[[], None]


@pytest.fixture(scope="module", params=["memory", "openldap"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "memory":
        twin = MemoryStore(SUFFIX)
        yield Bench(twin, twin.go_away, twin.come_back)
        return
    server = request.getfixturevalue("slapd_factory")(PLAIN)
    server.add(ROOT_ENTRY)
    store = open_store(DirectorySettings(uri=server.uri, suffix=SUFFIX, timeout_seconds=5, page_size=PAGE))
    yield Bench(store, server.kill, server.start)
    store.close()


@pytest.fixture
def store(bench: Bench) -> Store:
    return bench.store


@pytest.fixture
def base(store: Store) -> str:
    """A fresh subtree for one test."""
    return add_unit(store, f"test-{next(NUMBERS)}", SUFFIX)
