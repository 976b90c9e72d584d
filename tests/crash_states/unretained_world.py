"""A set that is brought back, or removed, on a node that loses power."""

from pathlib import Path
from typing import Any

from nodeagent.journal import Journals, Outcome
from nodeagent.operations.cleaning import clean_up
from nodeagent.order import Order, Restoring, SavedFile
from nodeagent.steps import Host, Step
from nodeagent.unretained import Unretained
from nodeagent.work import PLANS
from tests.crash_states.backed_up_world import (
    EARLIER,
    LEAF,
    MACHINE,
    PLACE,
    check_set,
    check_visible_sets,
    digest,
    make_set,
)
from tests.crash_states.losing_power import until_a_result
from tests.crash_states.played_node import PlayedHypervisor, PlayedImages, image
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode

SMALL, LARGE = Mode.UNRETAINING_SMALL_FILES, Mode.UNRETAINING_LARGE_FILES


class Unretaining:
    """One set, and `mode`, a step of bringing it back. `damaged`: its disk is not what was backed up."""

    def __init__(self, roots: list[Path], mode: Mode, *, damaged: bool = False) -> None:
        self.roots, self.mode, self.damaged, self.fails = roots, mode, damaged, damaged
        self.node, self.backup_root = roots[0], roots[-1] / "backup"
        self.journals = Journals(self.node / "state" / "journal")
        hypervisor: Any = PlayedHypervisor("")
        folders = [str(root) for root in roots]
        self.host = Host("n1", hypervisor, PlayedImages(), folders, {}, Unretained(self.node / "state" / "unretained"))
        for name in ("retain", "state"):
            (self.node / name).mkdir()
        self.set = self.backup_root.joinpath(*PLACE, MACHINE, LEAF)
        for timestamp in (LEAF, EARLIER[0]):
            make_set(self.set.parent / timestamp)
        self.files = {f"disk0.qcow2.{LEAF}": image(b"of long ago"), f"vm.state.{LEAF}": b"its memory"}
        (self.set / f"vm.state.{LEAF}").write_bytes(b"its memory")
        self.retain = Path(self._order(mode).paths.retain)
        if mode is LARGE:
            self._run(SMALL)

    def act(self) -> None:
        self.recover()
        assert bool(self.outcome.code) is self.fails, self.outcome

    def witness(self) -> None:
        return None

    def lose_power(self, _witness: Any) -> None:
        pass

    def check_at_once(self) -> None:
        """Files lie in retain only where a note leads to them: who backs out asks nobody for anything."""
        files = [path for path in (self.node / "retain").rglob("*") if path.is_file()]
        assert self.host.unretained.all() or not files, files

    def recover(self) -> None:
        self.outcome = self._run(self.mode)

    def _run(self, mode: Mode) -> Outcome:
        journal = until_a_result(self.journals, self._order(mode), lambda: self.plan(mode))
        assert journal.record.result is not None
        return journal.record.result

    def plan(self, mode: Mode) -> tuple[Step, ...]:
        return PLANS[mode](self._order(mode), self.host)

    def check(self) -> None:
        self.check_at_once()
        assert bool(self.outcome.code) is self.fails, self.outcome
        if self.fails and self.mode is SMALL:
            assert list((self.node / "retain").iterdir()) == self.host.unretained.all() == []
            return
        found = {path.name: path.read_bytes() for path in self.retain.iterdir()}
        small = {f"vm.xml.{LEAF}": b"<xml/>", f"vm.ldif.{LEAF}": b"dn: x", "conflicts.json": b"[]"}
        small["conflicts.txt"] = b"none"
        assert found == small | (self.files if self.mode is LARGE and not self.fails else {}), found

    def _order(self, mode: Mode) -> Order:
        files = tuple(
            SavedFile(
                role="disk" if "disk" in name else "state",
                name=name,
                kept=name,
                size=len(content),
                digest=digest(b"another" if self.damaged and "disk" in name else content),
            )
            for name, content in getattr(self, "files", {}).items()
        )
        restoring = Restoring(
            set_directory=str(self.set), files=files, xml="<xml/>", ldif="dn: x", conflicts="[]", report="none"
        )
        return Order(
            leaf_dn=f"ou={LEAF}",
            machine=MACHINE,
            timestamp=LEAF,
            mode=mode,
            uuid="u",
            power=Power.OFF,
            disks=(),
            retain_root=str(self.node / "retain"),
            backup_root=str(self.backup_root),
            place=PLACE,
            restoring=restoring,
        )


class BackedOut(Unretaining):
    """What was brought back is cleared away: the leaf has ended."""

    def __init__(self, roots: list[Path]) -> None:
        super().__init__(roots, LARGE)
        self._run(LARGE)

    def act(self) -> None:
        self.recover()

    def recover(self) -> None:
        for order in self.host.unretained.all():
            assert clean_up(order, self.host, keep_old=False)

    def check(self) -> None:
        self.check_at_once()
        assert self.host.unretained.all() == []
        assert list((self.node / "retain").iterdir()) == []


class Deleting(Unretaining):
    """A set goes, and what lies in retain of it; `before`: what a restore of it replaced, which stays."""

    def __init__(self, roots: list[Path], *, before: bool) -> None:
        super().__init__(roots, Mode.DELETING)
        self.before = self.retain / "before"
        for folder in (self.retain, *([self.before] if before else [])):
            folder.mkdir(parents=True)
            for name in ("vm.xml", "vda"):
                (folder / name).write_bytes(b"x")
        self.is_kept = before

    def check_at_once(self) -> None:
        for folder in self.set.parent.iterdir():
            if (folder / f"manifest.json.{folder.name}").exists():
                names = {path.name for path in folder.iterdir()}
                assert f"disk0.qcow2.{folder.name}" in names, "half a set is none"
        check_set(self.set.parent / EARLIER[0])

    def check(self) -> None:
        assert self.outcome.code == 0, self.outcome
        assert sorted(path.name for path in self.set.parent.iterdir()) == [EARLIER[0]]
        check_visible_sets(self.set.parent, 1)
        left = (
            {str(path.relative_to(self.retain)) for path in self.retain.rglob("*")} if self.retain.exists() else set()
        )
        assert left == ({"before", "before/vm.xml", "before/vda"} if self.is_kept else set()), left
        if not self.is_kept:
            assert not self.retain.exists()
