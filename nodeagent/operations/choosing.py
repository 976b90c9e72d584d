"""Which method a machine is saved with and which way its data takes, by what the host can do. Called by surveys."""

from pathlib import PurePosixPath

from nodeagent.host.cloning import can_clone
from nodeagent.host.description import ties_to_host
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import open_folder
from nodeagent.operations.making import Making, read_making
from nodeagent.operations.roots import BACKUP, open_root
from nodeagent.order import Order
from nodeagent.steps import Host
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import Power
from vmkeep.contract.methods import Method, Route, choose, freezes, route


def chosen(order: Order, wished: Method, xml: str, host: Host) -> tuple[Order, str]:
    """The order with its method and way, and why it is not the method wished; Refused where that cannot be done."""
    ties = ties_to_host(xml)
    choice = choose(wished, order.power, ties)
    if ties and choice.method is not Method.DISK and order.power is not Power.OFF:
        raise Refused(
            ReturnValue.UNSUPPORTED_PARAMETER,
            f"{order.machine}: the method {choice.method} cannot save this machine: {'; '.join(ties)}; "
            "set vmkeepMethod disk in its plan, or switch it off for its backups",
        )
    update = {"method": choice.method, "route": _route(order, choice.method, order.power, host)}
    return order.model_copy(update=update), choice.why


def as_made(order: Order, host: Host) -> Order:
    """The order of a merge with what the snapshot chose; what it left in retain says it, or the set cannot be made."""
    try:
        with open_folder(order.paths.retain, host.roots) as retain:
            making = read_making(retain)
    except FileNotFoundError:
        return order.model_copy(update={"unmade": f"{order.paths.retain} is gone"})
    except HostFailure as why:
        return order.model_copy(update={"unmade": str(why)})
    return order.model_copy(update={"method": making.method, "route": _route_as_made(order, making, host)})


def _route_as_made(order: Order, making: Making, host: Host) -> Route:
    """The backup directory is looked at only where frozen images may go there: if it hangs, the others are merged."""
    if freezes(making.method, making.power):
        return _route(order, making.method, making.power, host)
    return Route(freezes=False, clones=False, once=False, renames=making.renames)


def _route(order: Order, method: Method, power: Power, host: Host) -> Route:
    image = PurePosixPath(order.disks[0].path)
    with (
        open_folder(image.parent, host.roots) as images,
        open_folder(PurePosixPath(order.retain_root), host.roots) as retain,
        open_root(order.machine, BACKUP, order.backup_root, host) as backup,
    ):
        same, clones = images.device == backup.device, can_clone(images, retain)
    return route(method, power, same_filesystem=same, clones=clones)
