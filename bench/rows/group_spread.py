"""Row `group-spread`: how far apart the machines of a group on several nodes are saved, against its slowest snapshot.

The controller asks and the agents work, as every night. What is measured is what the guests saw: from the first one's
silence to the last one's, by the host's clock.
"""

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.figures import Figure, ratios, spread
from bench.session import Session
from lab import services
from lab.cluster import Lab, LabOptions
from lab.errors import LabError
from lab.machines import Machine, MachineSpec
from lab.ticks import Follower
from vmkeep.contract.methods import Method
from vmkeep.contract.names import Attribute, ObjectClass
from vmkeep.directory import open_store
from vmkeep.directory.catalogue import Catalogue
from vmkeep.service.settings import ControllerSettings, load

_BAR = 1.0
_COUNTS = 10  # of the running guests before and after
_LIMIT = 600


def measure(session: Session, method: Method = Method.SAVE) -> Iterator[Figure]:
    """One figure: four guests on three nodes."""
    session.say(f"group-spread: four guests on three nodes, method {method}")
    options = LabOptions(nodes=3, machines=4, agents=True, machine=MachineSpec(period_ms=20))
    with Lab(session.folder / "lab", options) as lab, _catalogue(lab) as catalogue:
        machines = list(lab.machines.values())
        for machine in machines:
            _join(lab, catalogue, machine, method)
        taken = [_one_run(lab, catalogue, machines) for _ in range(session.runs + 1)][1:]
    ours, raw = [one for one, _ in taken], [slowest for _, slowest in taken]
    yield Figure(
        row="group-spread",
        measured=f"from the first guest's silence to the last one's in a group, method {method}",
        amount="4 guests of 128 MiB on 3 nodes, two on one of them",
        twin="the slowest single snapshot of the same group",
        value=spread(ratios(ours, raw)),
        bar=_BAR,
        ours=spread(ours),
        raw=spread(raw),
    )


@contextmanager
def _catalogue(lab: Lab) -> Iterator[Catalogue]:
    store = open_store(load(ControllerSettings, lab.controller_settings).directory)
    try:
        yield Catalogue(store, lab.tree)
    finally:
        store.close()


def _join(lab: Lab, catalogue: Catalogue, machine: Machine, method: Method) -> None:
    catalogue.add_backup_subtree(machine.name)
    plan = {Attribute.GROUP: "bench", Attribute.METHOD: method}
    lines = [f"dn: {lab.tree.machine_plan(machine.name)}", "changetype: modify"]
    lines += ["add: objectClass", f"objectClass: {ObjectClass.PLAN}", "-"]
    lines += [line for name, value in plan.items() for line in (f"replace: {name}", f"{name}: {value}", "-")]
    lab.directory.modify("\n".join([*lines, ""]))


def _one_run(lab: Lab, catalogue: Catalogue, machines: list[Machine]) -> tuple[float, float]:
    """The spread that the guests saw, and the slowest snapshot, in seconds."""
    with ExitStack() as stack:
        followers = [stack.enter_context(Follower(machine.serial)) for machine in machines]
        _wait_for_counts(lab)
        argv = [str(services.script("vmkeep-controller")), "--settings", str(lab.controller_settings), "run", "--all"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_LIMIT, check=False)
        if done.returncode:
            raise LabError(f"the run ended with {done.returncode}: {done.stdout}{done.stderr}")
        _wait_for_counts(lab)
    begun = [_begin_of_silence(follower) for follower in followers]
    return max(begun) - min(begun), max(_slowest(catalogue, machine) for machine in machines)


def _wait_for_counts(lab: Lab) -> None:
    for machine in lab.machines:
        lab.wait_for_count(machine, more=_COUNTS)


def _begin_of_silence(follower: Follower) -> float:
    times = [moment for _, moment in follower.arrivals]
    return max(itertools.pairwise(times), key=lambda pair: pair[1] - pair[0])[0]


def _slowest(catalogue: Catalogue, machine: Machine) -> float:
    leaf = max(catalogue.leaves(machine.name), key=lambda each: each.timestamp)
    taken = leaf.duration("snapshot")
    if taken is None:
        raise LabError(f"{leaf.dn} does not say how long its snapshot took")
    return taken
