"""The workers of one node; and transcripts, text files of scenes and answers.

`pytest tests/pure --rewrite` writes the answers anew.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.cycle import Agent, ProgressPace
from nodeagent.work import PLANS, Workshop
from tests.pure.one_node import Gate, workshop
from vmkeep.contract.modes import Mode
from vmkeep.service.settings import LimitSettings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the answers of the transcripts anew")


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rewrite", default=False))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setitem(PLANS, Mode.MERGING, gate.plan)
    monkeypatch.setitem(PLANS, Mode.SNAPSHOTTING, gate.plan)
    yield gate
    gate.open.set()


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return workshop(tmp_path)


@pytest.fixture
def agent(shop: Workshop, gate: Gate) -> Iterator[Agent]:
    agent = Agent(shop, "n1", LimitSettings(merges=1, snapshots=1), ProgressPace(0.0), lambda: None)
    yield agent
    gate.open.set()
    assert agent.wait(10)
