"""The other side of a restore's directory: answers as an agent and a controller do, and touches no machine.

For tests of the command line alone. It claims with the identities of a node and of the controller.
"""

import json
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

from tests.slapd.cluster_of_peers import LIMIT, ClusterOfPeers
from vmkeep.contract.errors import TryLater
from vmkeep.contract.leaf import NOW, Leaf, with_duration
from vmkeep.contract.modes import ROWS, Kind, Mode, at_work, done
from vmkeep.contract.names import Attribute
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory.catalogue import LEAVES, Catalogue, Report
from vmkeep.directory.port import Claim

CONFLICTS = [
    {"kind": "disk path", "what": "vda", "saved": "/old/disk.qcow2", "live": "/new/disk.qcow2"},
    {"kind": "cpu or memory", "what": "[bold]memory", "saved": "1 GiB", "live": "2 GiB"},
]
WHERE = "2 things differ; edit the files in /retain/vm-persistent/pool/m/20260102T000000Z"


@dataclass
class Play:
    """How it answers. `failures` are return values by the mode asked, each used once; `held` modes are left alone.

    `said` is added to what a failure says.
    """

    failures: dict[Mode, int] = field(default_factory=dict)
    said: str = ""
    held: set[Mode] = field(default_factory=set)
    has_controller: bool = True


class Counterpart:
    """Agent and controller of one directory, in a thread; a context manager."""

    def __init__(self, cluster: ClusterOfPeers, play: Play | None = None) -> None:
        self.play = play or Play()
        self._stores = [cluster.store(cluster.slapd.identities[name]) for name in ("n1", "controller")]
        self._agent, self._controller = (Catalogue(store, cluster.tree) for store in self._stores)
        self._wake = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="counterpart")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._ending = True
        self._wake.set()
        self._thread.join(LIMIT)
        for store in self._stores:
            store.close()

    def wake(self) -> None:
        """Look again, after the play changed."""
        self._wake.set()

    def _run(self) -> None:
        with self._controller.store.watch(self._controller.tree.machines, LEAVES, self._wake.set):
            while not self._ending:
                self._wake.clear()
                try:
                    for leaf in list(self._controller.leaves()):
                        self._answer(leaf)
                except TryLater:
                    self._wake.wait(0.2)
                    continue
                self._wake.wait(1)

    def _answer(self, leaf: Leaf) -> None:
        if leaf.mode is None or leaf.mode in self.play.held:
            return
        if ROWS[leaf.mode].kind is Kind.IMPERATIVE and leaf.state == NOW:
            self._work(leaf, leaf.mode)
        elif self.play.has_controller:
            self._move_on(leaf)

    def _work(self, leaf: Leaf, mode: Mode) -> None:
        working = at_work(mode)
        if self._agent.claim(leaf, working, Report(NOW)) is Claim.LOST:
            return
        claimed = self._agent.leaf(leaf.dn)
        assert claimed is not None
        failure = self.play.failures.pop(mode, None)
        if failure:
            self._agent.claim(claimed, working, Report(_now(), failure, f"scripted failure of {mode}{self.play.said}"))
            return
        extra = {Attribute.EXECUTION_TIME: with_duration(claimed.execution_times, mode, 1.5)}
        message = None
        if mode is Mode.UNRETAIN_SMALL_FILES:
            extra[Attribute.CONFLICTS] = (json.dumps(CONFLICTS),)
            message = WHERE
        self._agent.claim(claimed, done(working), Report(_now(), message=message, extra=extra))

    def _move_on(self, leaf: Leaf) -> None:
        if leaf.is_failed:
            return
        if leaf.mode is Mode.UNRETAINED_LARGE_FILES:
            self._controller.claim(leaf, Mode.RESTORE, Report(NOW))
        if leaf.mode is Mode.DELETED or (leaf.mode is Mode.RESTORED and leaf.wishes.original):
            self._controller.store.delete(leaf.dn)
        elif leaf.mode is Mode.RESTORED:
            gone = (Attribute.CONFLICTS, Attribute.RESTORE_DISK, Attribute.RESTORE_WITHOUT_STATE)
            self._controller.claim(leaf, Mode.FINISHED, Report(_now(), extra=dict.fromkeys(gone, ())))


def _now() -> str:
    return to_timestamp(datetime.now(UTC))
