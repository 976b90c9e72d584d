"""Where machines in flight take up room, with whom, and until when: read from the plans, kept while they stay the same.

Called by the admission. Where no budget is set and no plan names a group or a window, one small search is all that is
read. Plans are read again when a leaf comes that is not known, and when one of them may have changed, but not more
often than once a minute.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

from controller.budgets import Piece
from controller.groups import NO_GROUP, Key
from vmkeep.contract.errors import Refused
from vmkeep.contract.grouping import Grouping, grouping_of, key_of_group, value_of
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import Schedule, is_excluded
from vmkeep.contract.timetable import timetable
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.port import AllOf, AnyOf, Present
from vmkeep.directory.survey import BACKUP_SUBTREES, Surveyed, survey

_FRESH = 60.0  # seconds: many plans may be edited one after another
_TELLS = AllOf((BACKUP_SUBTREES, AnyOf((Present(Attribute.GROUP), Present(Attribute.WINDOW)))))


@dataclass(frozen=True)
class Place:
    """One machine: the room it takes, its part in a group, its window as the plan has it and its schedule."""

    piece: Piece
    grouping: Grouping = NO_GROUP
    window: str = ""
    schedule: Schedule | None = None
    is_left_out: bool = False


@dataclass
class Places:
    """`always` where budgets are set: then places are wanted whatever plans name. `zone` is that of the schedules.

    `version` is another one after each change of plans; empty where nobody can tell.
    """

    catalogue: Catalogue
    zone: ZoneInfo
    always: bool = False
    elapsed: Callable[[], float] = time.monotonic
    version: Callable[[], tuple[str, ...]] = tuple
    _known: dict[str, Place] = field(default_factory=dict)
    _leaves: frozenset[Key] = frozenset()
    _version: tuple[str, ...] = ()
    _read_at: float = float("-inf")

    def of(self, leaves: Iterable[Leaf]) -> dict[str, Place]:
        """Every machine's place by its folded name, for leaves that stand; empty where nobody needs one."""
        moving = (leaf for leaf in leaves if leaf.is_in_flight and leaf.mode is not Mode.INITIALIZE)
        standing = frozenset((leaf.machine.casefold(), leaf.timestamp) for leaf in moving)
        if not standing <= self._leaves or self._is_stale():
            self._read()
            self._leaves = standing
        return self._known

    def groupings(self, leaves: Iterable[Leaf]) -> dict[str, Grouping]:
        """Every machine's part in a group by its folded name, as `of`."""
        return {name: place.grouping for name, place in self.of(leaves).items()}

    def members(self, group: str) -> tuple[str, ...]:
        """The machines whose plans name a group, without those that are left out."""
        wanted, found = key_of_group(group), self._known.values()
        named = (one for one in found if key_of_group(one.grouping.group) == wanted and not one.is_left_out)
        return tuple(one.piece.machine for one in named)

    def _is_stale(self) -> bool:
        if self.elapsed() - self._read_at < _FRESH:
            return False
        version = self.version()
        if version and version == self._version:
            self._read_at = self.elapsed()
            return False
        return True

    def _read(self) -> None:
        version = self.version()  # first: what changes meanwhile is read again
        wanted = self.always or self._is_named()
        self._known = {one.machine.name.casefold(): place_of(one) for one in survey(self.catalogue)} if wanted else {}
        self._version, self._read_at = version, self.elapsed()

    def _is_named(self) -> bool:
        """Whether any plan names a group or a window; leaves that do so are of the past."""
        top = self.catalogue.tree.top
        return any(True for _ in self.catalogue.store.search(top, _TELLS, attributes=("ou",)))


def place_of(surveyed: Surveyed) -> Place:
    """What the plan of a machine says of its place. What cannot be read is the agent's to refuse."""
    machine, sources = surveyed.machine, surveyed.sources
    piece = Piece(machine.name, machine.node or "", value_of(Attribute.BACKUP_ROOT, sources).rstrip("/"))
    try:
        left_out = is_excluded(machine.name, sources)
    except Refused:
        left_out = False
    window = value_of(Attribute.WINDOW, sources)
    return Place(piece, grouping_of(sources), window, timetable(machine, sources).schedule, left_out)
