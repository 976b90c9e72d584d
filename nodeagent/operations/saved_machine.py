"""One machine as its set has it and as a person edited it in retain: what the surveys of unretain and restore both ask.

Reads only. What was edited is checked each time it is used: between two steps anybody may have written to it.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath

from nodeagent.host.description import Description, describe
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import open_folder
from nodeagent.host.state_file import description_inside
from nodeagent.operations.finding import FoundSet
from nodeagent.order import Order, OrderDisk
from nodeagent.restoring import allowed, conflicts
from nodeagent.steps import Host
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.machine import Power
from vmkeep.contract.names import Tree
from vmkeep.contract.paths import STAND_IN_STATE
from vmkeep.contract.plan import Plan
from vmkeep.directory.alignment import read_saved
from vmkeep.directory.ldif_text import to_ldif

_MOST_TEXT = 4 << 20
_ROOTS = ("image_roots", "nvram_roots", "readable_roots", "writable_roots")


@dataclass(frozen=True)
class Edited:
    """The two texts in retain, sound and fitting each other, and what the first describes."""

    xml: str
    ldif: str
    description: Description


@dataclass(frozen=True)
class SavedMachine:
    """The machine of one restore. `places` says what a description may name on this node."""

    leaf: Leaf
    plan: Plan
    found: FoundSet
    host: Host
    places: allowed.AllowedPlaces
    tree: Tree

    @cached_property
    def note(self) -> Order:
        """What was brought back first, by this node."""
        note = self.host.unretained.find(self.leaf.machine, self.leaf.timestamp)
        if note is None:
            raise Refused(
                ReturnValue.MISSING_FILES,
                f"{self.leaf.machine}: {self.host.node} holds nothing of this restore{self._begun_elsewhere}; "
                "then begin with unretainSmallFiles, on the node that sstNode names now",
            )
        return note

    @property
    def _begun_elsewhere(self) -> str:
        """How to come out of a restore whose machine was moved: what was brought is cleared by who brought it.

        Until a restore has begun, the leaf names the node that made the set, which may be any.
        """
        node, has_begun = self.leaf.set_node, bool(self.leaf.is_in_restore and self.leaf.conflicts)
        if not has_begun or node.casefold() in ("", self.host.node.casefold()):
            return "; back out"
        left = f"{self.leaf.machine}/{self.leaf.timestamp} in {self.plan.retain_root}"
        return f", {node} began it: set sstNode to {node}, back out, and set it back once that has cleared {left}"

    @cached_property
    def edited(self) -> Edited:
        """The texts in retain as a person left them; Refused where they are not sound."""
        paths = self.note.paths
        files = paths.kept_name(paths.xml), paths.kept_name(paths.ldif)
        xml = self._text(files[0], ReturnValue.CANNOT_READ_XML)
        ldif = self._text(files[1], ReturnValue.CANNOT_COPY_BACKEND_FILE)
        entries = read_saved(ldif, self.leaf.machine, self.tree)
        allowed.check_edited(xml, entries, self.leaf.machine, self.note.uuid, files)
        self.refuse_forbidden(str(paths.retain / files[0]), xml, self.places)
        # Written anew, because the directory takes this text in ASCII alone, and a person may have typed any letter.
        return Edited(xml, to_ldif(entries), describe(xml))

    def _text(self, name: str, code: ReturnValue) -> str:
        path = self.note.paths.retain / name
        try:
            with open_folder(path.parent, self.host.roots) as retain:
                return retain.read(name, _MOST_TEXT).decode()
        except FileNotFoundError:
            raise Refused(
                ReturnValue.MISSING_FILES, f"{self.leaf.machine}: {path} is missing; back out and begin again"
            ) from None
        except (UnicodeDecodeError, HostFailure) as why:
            raise Refused(code, f"{self.leaf.machine}: {path} cannot be read: {why}") from None

    def refuse_forbidden_memory(self, directory: PurePath, name: str) -> None:
        """Refused where a state file cannot be read, or the description inside it names what is not allowed.

        libvirt acts on the edited one, so paths may differ. It reads the one inside only after we have.
        """
        path = directory / name
        try:
            with open_folder(directory, self.host.roots) as folder, folder.opened(name) as descriptor:
                inside = description_inside(descriptor, str(path))
            anywhere = replace(self.places, **dict.fromkeys(_ROOTS, ("/",)))
            self.refuse_forbidden(f"the description inside {path}", inside, anywhere)
            self.host.hypervisor.saved_description(str(path))
        except FileNotFoundError:
            raise Refused(
                ReturnValue.MISSING_FILES, f"{self.leaf.machine}: {path} is missing; back out and begin again"
            ) from None
        except (HostFailure, OSError) as why:
            raise Refused(
                ReturnValue.CANNOT_READ_STATE,
                f"{self.leaf.machine}: {path} cannot be read: {why}; nothing was touched; restore from another set, "
                "or without the memory (sstRestoreVMWithoutState TRUE on the leaf)",
            ) from None

    def refuse_forbidden(self, where: str, xml: str, places: allowed.AllowedPlaces) -> None:
        """Refused where a description names what is not allowed on this node."""
        reasons = allowed.refusals(xml, places)
        if reasons:
            raise Refused(
                ReturnValue.DESCRIPTION_NOT_ALLOWED,
                f"{self.leaf.machine}: {where} is not used, nothing was touched: {'; '.join(reasons)}",
            )

    @cached_property
    def disks(self) -> tuple[OrderDisk, ...]:
        """The disks that are brought back, at the places that the edited description gives them."""
        saved = {file.target: file for file in self.found.files("disk")}
        named = {disk.target: disk.source for disk in self.edited.description.disks if disk.is_backed_up}
        wanted = self.leaf.wishes.disks or tuple(named)
        unknown = [target for target in wanted if target not in saved or not named.get(target)]
        if unknown:
            raise Refused(
                ReturnValue.MISSING_FILES,
                f"{self.leaf.machine}: there is no disk {', '.join(unknown)} to bring back: the set has "
                f"{', '.join(map(str, saved))}, the description {', '.join(named)}",
            )
        return tuple(OrderDisk(target=target, path=str(named[target]), kept=saved[target].name) for target in wanted)

    # memory

    @cached_property
    def is_stand_in(self) -> bool:
        """Whether the set has no memory: the machine was off, or its disks alone were wanted."""
        file = self.found.one("state")
        if file.size > len(STAND_IN_STATE) + 2:
            return False
        with self.found.opened() as folder:
            return folder.read(file.name).decode(errors="replace").rstrip("\r\n") == STAND_IN_STATE

    @property
    def starts(self) -> bool:
        """Whether it is started where it does without memory; one that was off only if its plan says so."""
        return self.plan.force_start or self.found.manifest.power is not Power.OFF

    @property
    def is_brought_back_with_memory(self) -> bool:
        """Whether it is to run on from its instant."""
        return not self.is_stand_in and not self.leaf.wishes.disks and not self.reasons_against_memory

    @cached_property
    def reasons_against_memory(self) -> tuple[str, ...]:
        """Why the saved memory is not used; none where it is."""
        return self._wishes_against_memory or conflicts.hardware_differs(self.note.set.xml, self.edited.xml)

    @property
    def _wishes_against_memory(self) -> tuple[str, ...]:
        """The reasons that stand before anybody edits anything."""
        if self.leaf.wishes.original:
            return ("another machine cannot take over its memory",)
        wished = self.leaf.wishes.without_state
        if self.plan.restore_without_state if wished is None else wished:
            return ("sstRestoreVMWithoutState is TRUE",)
        return ()

    @property
    def remark(self) -> str:
        """What a person should know of it, before and after."""
        return self._remark(self.reasons_against_memory)

    @property
    def first_remark(self) -> str:
        """The same as far as it is known before the texts lie in retain."""
        return self._remark(self._wishes_against_memory)

    def _remark(self, against_memory: tuple[str, ...]) -> str:
        if self.leaf.wishes.disks:
            return f"only {', '.join(self.leaf.wishes.disks)}: the machine stays off"
        if self.is_stand_in and self.found.manifest.power is not Power.OFF:
            return f"it was backed up without its memory ({self.found.manifest.consistency} consistent): started anew"
        if self.is_stand_in:
            start = "it is started (ForceStart)" if self.plan.force_start else "it stays off"
            return f"the machine was off when it was backed up; {start}"
        if against_memory:
            return f"started without its saved memory: {'; '.join(against_memory)}"
        return ""
