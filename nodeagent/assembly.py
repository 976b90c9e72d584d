"""Puts an agent together from its settings; called by the command line and by whoever runs one in its own process."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog

from nodeagent.cycle import Agent, ProgressPace
from nodeagent.host.cloning import can_clone
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import open_folder
from nodeagent.host.hypervisor import Hypervisor
from nodeagent.host.images import Images
from nodeagent.host.programs import run
from nodeagent.journal import Journals
from nodeagent.moves import Moves, this_boot
from nodeagent.operations.survey import Rules, Surveyor
from nodeagent.restoring.allowed import AllowedPlaces
from nodeagent.runner import Patience
from nodeagent.steps import Host
from nodeagent.turns import Turns
from nodeagent.unretained import Unretained
from nodeagent.work import Workshop
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.names import Tree
from vmkeep.directory import open_store
from vmkeep.directory.catalogue import CONCERNING_AGENTS, Catalogue
from vmkeep.directory.port import Watcher
from vmkeep.service.settings import NodeAgentSettings


@dataclass(frozen=True)
class Assembly:
    """One agent and what it holds open."""

    agent: Agent
    shop: Workshop
    settings: NodeAgentSettings

    def watch(self, wake: Callable[[], None]) -> Watcher:
        """Wake up whenever a leaf asks for work."""
        return self.shop.catalogue.store.watch(self.shop.catalogue.tree.machines, CONCERNING_AGENTS, wake)

    def clones(self) -> dict[str, bool]:
        """For every two roots of this node whether files can be cloned from one to the other; tried, and remembered."""
        settings = self.settings
        pairs = ((image, place) for image in settings.image_roots for place in settings.allowed_roots)
        return {f"{image} → {place}": _can_clone(image, place) for image, place in pairs if _are_there(image, place)}

    def tell_clones(self) -> None:
        """Log them, in a thread of its own: a mount that hangs keeps nobody from work elsewhere."""
        threading.Thread(
            target=lambda: self.shop.log.info("clones", **self.clones()), name="clones", daemon=True
        ).start()

    def stop_copying(self) -> None:
        """Ask copies at work to stop: they are begun anew by the next start. No machine stands still for them."""
        self.shop.host.stop.set()

    def close(self) -> None:
        """Let go of directory and libvirt."""
        self.shop.catalogue.store.close()
        self.shop.host.hypervisor.close()


def assemble(settings: NodeAgentSettings, wake: Callable[[], None]) -> Assembly:
    """Everything an agent needs, connected at the first call. `wake` asks for another cycle."""
    state = Path(settings.state_directory)
    catalogue = Catalogue(open_store(settings.directory), Tree(settings.directory.suffix))
    host = Host(
        node=settings.node,
        hypervisor=Hypervisor(settings.libvirt_uri, settings.libvirt_seconds),
        images=Images(settings.qemu_img_seconds, settings.data_seconds),
        roots=_roots(settings),
        versions={"vmkeep": version("vmkeep")},
        unretained=Unretained(state / "unretained"),
        moves=Moves(catalogue, settings.node, this_boot()),
        turns=Turns(catalogue, wake),
    )
    rules = Rules(
        settings.allowed_roots,
        settings.image_roots,
        settings.effective_nvram_roots,
        settings.libvirt_state_directory,
        restored=AllowedPlaces(
            image_roots=settings.image_roots,
            nvram_roots=settings.effective_nvram_roots,
            readable_roots=settings.readable_roots,
            writable_roots=settings.writable_roots,
            emulators=settings.emulators,
        ),
    )
    shop = Workshop(
        catalogue=catalogue,
        host=host,
        surveyor=Surveyor(catalogue, host, rules),
        journals=Journals(state / "journal"),
        locks=state / "locks",
        patience=Patience(),
        log=structlog.get_logger(node=settings.node),
    )
    pace = ProgressPace(settings.progress_seconds, settings.silent_seconds)
    agent = Agent(shop, settings.node, settings.limits, pace, wake)
    return Assembly(agent, shop, settings)


def _roots(settings: NodeAgentSettings) -> tuple[str, ...]:
    places = (*settings.allowed_roots, *settings.image_roots, *settings.effective_nvram_roots)
    return tuple(dict.fromkeys((*places, settings.libvirt_state_directory)))


def findings(assembly: Assembly) -> list[tuple[str, str, bool]]:
    """(what, finding, is well): whether everything an agent needs answers."""
    shop, settings = assembly.shop, assembly.settings
    tree = shop.catalogue.tree
    asked: list[tuple[str, Callable[[], str]]] = [
        ("directory", lambda: _found(shop.catalogue.store.read(tree.machines), tree.machines)),
        (
            "this node's entry",
            lambda: _found(shop.catalogue.store.read(tree.node(settings.node)), tree.node(settings.node)),
        ),
        ("libvirt", lambda: ", ".join(map(" ".join, shop.host.hypervisor.versions().items()))),
        ("qemu-img", lambda: run("qemu-img", ["--version"], settings.qemu_img_seconds).splitlines()[0]),
        ("journals", lambda: f"{len(shop.journals.all())} unfinished"),
    ]
    roots = dict.fromkeys((*settings.allowed_roots, *settings.image_roots))
    asked += [(f"root {root}", partial(_directory, root)) for root in roots]
    asked += [
        ("clones", lambda: ", ".join(f"{pair}: {'yes' if can else 'no'}" for pair, can in assembly.clones().items()))
    ]
    return [(what, *_ask(question, settings.check_seconds)) for what, question in asked]


def _are_there(*roots: str) -> bool:
    return all(Path(root).is_dir() for root in roots)


def _can_clone(source: str, target: str) -> bool:
    with open_folder(Path(source), [source]) as images, open_folder(Path(target), [target]) as place:
        return can_clone(images, place)


def _ask(question: Callable[[], str], seconds: float) -> tuple[str, bool]:
    """In a thread of its own: who looks at a mount that hangs does not come back."""
    answer: Future[str] = Future()
    threading.Thread(target=_answer, args=(question, answer), daemon=True).start()
    try:
        return answer.result(seconds), True
    except TimeoutError:
        return f"does not answer within {seconds:g} s", False
    except (TryLater, Refused, HostFailure, OSError) as why:
        return str(why), False


def _answer(question: Callable[[], str], answer: "Future[str]") -> None:
    try:
        answer.set_result(question())
    except (TryLater, Refused, HostFailure, OSError) as why:
        answer.set_exception(why)


def _found(entry: object, dn: str) -> str:
    if entry is None:
        raise HostFailure(f"{dn} is not there, or may not be read")
    return dn


def _directory(root: str) -> str:
    if not Path(root).is_dir():
        raise HostFailure("is not a directory")
    return "there"
