"""How a machine is saved: the methods, which one a machine gets, and the way its data takes. Pure.

Agent, console and documentation read this; what each costs and gives up is in docs/how-to/choose-a-method.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from vmkeep.contract.machine import Power


class Method(StrEnum):
    """A value of vmkeepMethod. `AUTO` stands in plans only."""

    SAVE = "save"  # memory and disks while the machine stands still
    LIVE = "live"  # memory while it runs, disks frozen in the same instant
    DISK = "disk"  # disks only
    AUTO = "auto"  # live where the machine can, else save


@dataclass(frozen=True)
class Choice:
    """The method of one backup, and why it is not the one that was wished, "" where it is."""

    method: Method
    why: str = ""


def choose(wished: Method, power: Power, obstacles: Sequence[str]) -> Choice:
    """The method for a machine. `obstacles` say what keeps it from being frozen while it runs."""
    if power is Power.OFF:
        return Choice(Method.SAVE)
    if power is Power.PAUSED and wished is not Method.DISK:
        # QEMU gives a paused machine's images up once its memory is written, and takes them back only when it runs.
        return Choice(Method.SAVE, "" if wished is Method.SAVE else "saved, not live: it is paused")
    if wished is Method.AUTO:
        return Choice(Method.SAVE, f"saved, not live: {'; '.join(obstacles)}") if obstacles else Choice(Method.LIVE)
    return Choice(wished)


@dataclass(frozen=True)
class Route:
    """The way the disks of one set take.

    `freezes`: the images stay where they are, and the machine writes to overlays until they are copied. `clones`: the
    filesystem copies them without moving data. `once`: merge copies straight to the backup directory. `renames`: retain
    moves no data, so merge takes the digests.
    """

    freezes: bool
    clones: bool
    once: bool
    renames: bool = False

    @property
    def words(self) -> str:
        """The way, for people."""
        if self.freezes:
            how = "frozen in place"
            where = "cloned" if self.clones else "copied to the backup directory" if self.once else "copied to retain"
            return f"{how}, {where}, overlays written back"
        if self.clones:
            return "cloned while the machine stands still"
        return "moved aside, streamed back into the live images"


def ways(wished: Method, power: Power) -> dict[str, str]:
    """Where the backup directory may lie → the way of the disks there, for people."""
    method = choose(wished, power, ()).method
    places = {"same filesystem": (True, False), "same, one that clones": (True, True), "another": (False, False)}
    return {
        place: _whole_way(route(method, power, same_filesystem=same, clones=clones), same)
        for place, (same, clones) in places.items()
    }


def _whole_way(way: Route, is_same_filesystem: bool) -> str:
    end = "" if way.once else f"; {'renamed' if is_same_filesystem else 'copied'} to the backup directory"
    return way.words + end


def freezes(method: Method, power: Power) -> bool:
    """Whether the images stay where they are, under overlays, until merge has copied them."""
    return method in (Method.LIVE, Method.DISK) and power is not Power.OFF


def route(method: Method, power: Power, *, same_filesystem: bool, clones: bool) -> Route:
    """The way: `same_filesystem` of images and backup directory, `clones` where images can be cloned into retain."""
    frozen = freezes(method, power)
    takes_clones = clones and (frozen or power is not Power.OFF)
    # A clone costs no data: the machine is whole again at once, and retain copies from the clone.
    return Route(frozen, takes_clones, frozen and not same_filesystem and not takes_clones, same_filesystem)
