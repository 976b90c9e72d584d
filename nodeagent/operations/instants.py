"""The instant of a snapshot: the steps that hold a machine's disks, and its memory, at one moment. Called by its plan.

    off:               overlays → firmware → swap
    save:              overlays → save → firmware → swap → resume
    save, clones:      save → firmware → clone → load → go
    live and disk:     freeze → firmware

In a group with an order of starting there is a `turn` before resume and load, and `started` at the end. From save on
the machine stands still until it is let go; nothing but its turn, and that bounded, waits for the directory.
"""

from nodeagent.operations.cloning_still import CloningStill
from nodeagent.operations.freezing import Freezing
from nodeagent.operations.resuming import Resuming
from nodeagent.operations.starting import started, turn
from nodeagent.operations.swapping import Swapping
from nodeagent.order import Order
from nodeagent.steps import Host, Step
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.machine import Power


def instant(order: Order, host: Host, firmware: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps of the instant; `firmware` are those that keep the firmware's files."""
    return (*_held(order, host, firmware), *started(order, host))


def _held(order: Order, host: Host, firmware: tuple[Step, ...]) -> tuple[Step, ...]:
    if order.power is Power.OFF:
        return (*_overlays(order, host), *firmware, _swap(order, host))
    if order.route.freezes:
        return (_freeze(order, host), *firmware)
    still = tuple(step.while_guest_is_down(True) for step in firmware)
    if order.route.clones:
        return (_save(order, host), *still, *_clones(order, host))
    held = (_save(order, host), *still, _swap(order, host))
    return (*_overlays(order, host), *held, *turn(order, host), _resume(order, host))


def _freeze(order: Order, host: Host) -> Step:
    freezing = Freezing(order, host)
    return (
        Step("freeze", "freeze the machine's disks", ReturnValue.CANNOT_SAVE_STATE, freezing.freeze, freezing.frozen)
        .undone_by(freezing.unfreeze)
        .guarding_machine()
    )


def _save(order: Order, host: Host) -> Step:
    resuming = Resuming(order, host)
    return (
        Step("save", "save the machine's memory", ReturnValue.CANNOT_SAVE_STATE, resuming.save, resuming.saved)
        .undone_by(resuming.bring_back)
        .guarding_machine()
    )


def _overlays(order: Order, host: Host) -> tuple[Step, ...]:
    swapping = Swapping(order, host)
    create = Step("overlays", "create the new images", ReturnValue.CANNOT_CREATE_IMAGE, swapping.create)
    return (create.undone_by(swapping.remove_created),)


def _swap(order: Order, host: Host) -> Step:
    swapping = Swapping(order, host)
    return (
        Step("swap", "put the new images in place", ReturnValue.CANNOT_RENAME_IMAGE, swapping.swap)
        .undone_by(swapping.swap_back)
        .guarding_machine()
        .while_guest_is_down(order.power is not Power.OFF)
    )


def _resume(order: Order, host: Host) -> Step:
    resuming = Resuming(order, host)
    return Step(
        "resume", "let the machine run on", ReturnValue.CANNOT_RESTORE_MACHINE, resuming.resume, resuming.resumed
    ).while_guest_is_down(True)


def _clones(order: Order, host: Host) -> tuple[Step, ...]:
    """The journal must hold that the machine is let go, so that step is none of a machine that waits."""
    cloning = CloningStill(order, host)
    clone = Step("clone", "clone the images", ReturnValue.CANNOT_COPY_IMAGE, cloning.clone).undone_by(cloning.remove)
    load = Step(
        "load", "bring the machine back", ReturnValue.CANNOT_RESTORE_MACHINE, cloning.load, cloning.loaded
    ).while_guest_is_down(True)
    go = Step("go", "let the machine run on", ReturnValue.CANNOT_RESTORE_MACHINE, cloning.go, cloning.gone)
    still = clone.while_guest_is_down(True)
    return (still, *turn(order, host), load, go) if order.power is Power.RUNNING else (still, load)
