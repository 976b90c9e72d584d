"""Restore: put a machine back as its set has it, and put it back as it was should that fail.

    aside → [stop] → keep firmware → firmware → place → define → load → go   (or, without its memory: start)

Nothing is removed: what is replaced is kept aside until the leaf has ended. The definition is replaced, not removed and
made again, so that there is no moment without one and libvirt removes no NVRAM and no TPM. Single disks of a machine
that is off need `aside` and `place` alone.
"""

from nodeagent.operations.aside import Aside
from nodeagent.operations.in_turn import in_turn, while_off
from nodeagent.operations.reviving import Reviving
from nodeagent.order import Order
from nodeagent.steps import Host, Step
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.machine import Power


def restore(order: Order, host: Host) -> tuple[Step, ...]:
    """The steps of a restore."""
    aside, reviving = Aside(order, host), Reviving(order, host)
    first = Step(
        "aside", "keep the machine's definition", ReturnValue.CANNOT_SAVE_XML, aside.keep_definition
    ).undone_by(aside.remove)
    place = (
        Step("place", "put the images in place", ReturnValue.CANNOT_MOVE_IMAGE_BACK, aside.place)
        .undone_by(aside.place_back)
        .guarding_machine()
    )
    if order.set.alone:
        return in_turn((first, while_off(place, reviving)), aside)
    define = (
        Step("define", "define the machine", ReturnValue.CANNOT_DEFINE, aside.define)
        .undone_by(aside.define_back)
        .guarding_machine()
    )
    down = (*_firmware(order, aside), place, define)
    waiting = (while_off(step, reviving).while_guest_is_down(order.power is not Power.OFF) for step in down)
    return in_turn((first, *_stop(order, reviving), *waiting, *_come_up(order, reviving)), aside)


def _stop(order: Order, reviving: Reviving) -> tuple[Step, ...]:
    if order.power is Power.OFF:
        return ()
    return (
        Step("stop", "save the machine as it runs now", ReturnValue.CANNOT_SAVE_STATE, reviving.stop, reviving.stopped)
        .undone_by(reviving.bring_back)
        .guarding_machine(),
    )


def _firmware(order: Order, aside: Aside) -> tuple[Step, ...]:
    if not order.firmware:
        return ()
    return (
        Step("keep firmware", "keep the firmware's files", ReturnValue.CANNOT_COPY_FILE, aside.keep_firmware)
        .undone_by(aside.drop_firmware),
        Step("firmware", "put the firmware's files in place", ReturnValue.CANNOT_COPY_FILE, aside.put_firmware)
        .undone_by(aside.put_firmware_back)
        .guarding_machine(),
    )  # fmt: skip


def _come_up(order: Order, reviving: Reviving) -> tuple[Step, ...]:
    """Nothing durable may be missing from the journal once it runs, so these are no steps of a machine that waits."""
    if not order.set.state_file:
        if not order.set.starts:
            return ()
        start = Step("start", "start the machine", ReturnValue.CANNOT_START, reviving.start, reviving.started)
        return (start.undone_by(reviving.unload).guarding_machine(),)
    load = (
        Step("load", "restore the machine", ReturnValue.CANNOT_RESTORE_MACHINE, reviving.load, reviving.loaded)
        .undone_by(reviving.unload)
        .guarding_machine()
    )
    go = Step("go", "let the machine run on", ReturnValue.CANNOT_RESTORE_MACHINE, reviving.go, reviving.gone)
    return (load, go) if order.set.becomes is Power.RUNNING else (load,)
