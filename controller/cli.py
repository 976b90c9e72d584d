"""The command line `vmkeep-controller`: parse, call, print."""

import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeAlias
from zoneinfo import ZoneInfo

import typer
from structlog.typing import FilteringBoundLogger

from controller.admission import Admission, budgets_of
from controller.check import check as check_directory
from controller.cycle import NOT_ENDED, Cycle, bounds_of, read_view, utc_now
from controller.lease import Lease, Leased
from controller.lookout import Lookout, slots_of
from controller.places import Places
from controller.plan_changes import PlanChanges
from controller.promises import Watch
from controller.pruning import Pruner
from controller.pulse import Pulse
from controller.rehearsal import Rehearsal, comment
from controller.report import ALL_FINISHED, NONE_FINISHED, Outcome, exit_code, line, summary
from controller.run import Choice, Fate, Started, choose, start
from controller.schedule import Scheduler
from controller.serving import LEASES, Guest, Serving, Turn, holder_of_this_process
from controller.verdicts import Verdicts
from controller.waiting import Deletions, Run
from vmkeep.contract.codes import ReturnValue
from vmkeep.directory.catalogue import Catalogue
from vmkeep.service import logs
from vmkeep.service.command import INTERRUPTED, Program, opened
from vmkeep.service.daemonize import daemonized
from vmkeep.service.loop import Loop, Pace, signals
from vmkeep.service.metrics import Metrics
from vmkeep.service.readiness import Readiness
from vmkeep.service.settings import CONTROLLER_FILE, ControllerSettings

PROGRAM = Program(
    "vmkeep-controller",
    ControllerSettings,
    CONTROLLER_FILE,
    interrupted="interrupted; leaves that were added are taken on by `serve` or the next run",
)

app = typer.Typer(
    help="Backs up the machines of the cluster: adds a leaf for each and moves it from mode to mode.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SettingsFile: TypeAlias = Annotated[Path | None, PROGRAM.settings_option()]
Machines: TypeAlias = Annotated[
    list[str] | None, typer.Argument(metavar="[MACHINE]...", help="names, as sstVirtualMachine has them")
]
Due: TypeAlias = Annotated[bool, typer.Option("--due", help="every machine that is due by its plan")]
All: TypeAlias = Annotated[bool, typer.Option("--all", help="every machine and template of the directory")]


@app.callback()
def common(context: typer.Context, settings_file: SettingsFile = None) -> None:
    """Options before the command."""
    context.obj = settings_file


@app.command()
def run(
    context: typer.Context,
    machines: Machines = None,
    everything: All = False,
    due: Due = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="stop waiting after this long")
    ] = None,
    settings_file: SettingsFile = None,
) -> None:
    """Back up machines and wait for them; for cron. Exit 0: all finished or none due, 3: some, 1: none, 2: usage."""
    with PROGRAM.told():
        if due and (machines or everything):
            raise typer.BadParameter("--due chooses the machines itself: name none, and leave --all out")
        names = None if due else _names(machines, everything)
        chosen = PROGRAM.settings(context, settings_file)
        seconds = chosen.run_timeout_seconds if timeout is None else timeout
        with opened(chosen.directory) as catalogue:
            raise typer.Exit(_run_due(catalogue, chosen, seconds) if due else _run(catalogue, chosen, names, seconds))


@app.command()
def serve(
    context: typer.Context,
    daemon: Annotated[bool, typer.Option("--daemon", help="go into the background")] = False,
    pidfile: Annotated[Path | None, typer.Option(metavar="FILE", help="written while at work")] = None,
    settings_file: SettingsFile = None,
) -> None:
    """Start what is due by the plans, and move whatever is in flight, until stopped."""
    with PROGRAM.told():
        chosen = PROGRAM.settings(context, settings_file)
        with daemonized(daemon, pidfile, chosen.logs):
            _serve(chosen)


@app.command()
def plan(
    context: typer.Context,
    machines: Machines = None,
    everything: All = False,
    settings_file: SettingsFile = None,
) -> None:
    """Print what a run would write now, as LDIF, and write nothing."""
    with PROGRAM.told():
        names = _names(machines, everything)
        chosen = PROGRAM.settings(context, settings_file)
        with opened(chosen.directory) as catalogue:
            _print_plan(catalogue, chosen, names)


@app.command()
def check(context: typer.Context, settings_file: SettingsFile = None) -> None:
    """Look whether settings, directory, schema, tree and backups are well. Exit 0: all well, 1: something is not."""
    with PROGRAM.told():
        chosen = PROGRAM.settings(context, settings_file)
        with opened(chosen.directory) as catalogue:
            findings = []
            for finding in check_directory(catalogue, utc_now()):
                findings.append(finding)
                print(f"{finding.word} {finding.sentence}")
        raise typer.Exit(0 if all(finding.is_well for finding in findings) else NONE_FINISHED)


def main() -> None:
    """Entry point of the script."""
    app(prog_name=PROGRAM.name)


def _run(catalogue: Catalogue, chosen: ControllerSettings, names: list[str] | None, timeout: float) -> int:
    choices = choose(catalogue, names)
    if not choices:
        print(f"there is no machine below {catalogue.tree.machines}: is the suffix in the settings right?")
        return NONE_FINISHED
    started = _start(catalogue, choices, chosen)
    return _waited(catalogue, chosen, started, frozenset({started.timestamp}), timeout)


def _run_due(catalogue: Catalogue, chosen: ControllerSettings, timeout: float) -> int:
    lookout = Lookout(catalogue, ZoneInfo(chosen.timezone))
    due = lookout.look(utc_now())
    choices = (*due, *lookout.refused())
    if not choices:
        return _nothing_due(lookout)
    started = replace(_start(catalogue, choices, chosen), timestamp=", ".join(slots_of(due)) or "nothing is due")
    # Another controller may be adding leaves of the same slots: they are not complete because ours are.
    return _waited(catalogue, chosen, started, frozenset(), timeout)


def _nothing_due(lookout: Lookout) -> int:
    if lookout.is_anything_planned:
        return ALL_FINISHED  # in silence: cron asks every few minutes, and mails what is printed
    print("no machine has a schedule that is active: `vmkeep plan` says why")
    return NONE_FINISHED


def _waited(
    catalogue: Catalogue, chosen: ControllerSettings, started: Started, complete: frozenset[str], timeout: float
) -> int:
    """Wait for the leaves of a run, and print how each machine ended; the exit code."""
    # Cron mails whatever is printed: the lines of the machines say it all, the log only what is odd.
    quiet = chosen.logs.model_copy(update={"level": "debug" if chosen.logs.level == "debug" else "warning"})
    log = logs.configure(quiet, PROGRAM.name)
    guest = Guest(catalogue.store, catalogue.tree)
    cycle = _cycle(guest.catalogue, chosen, log, Metrics())
    cycle.only, cycle.complete = started.machines, complete
    pruner = Pruner(guest.catalogue, ZoneInfo(chosen.timezone), log, utc_now, every=None)
    deadline = time.monotonic() + timeout
    waiting = Run(cycle, started, _say, deadline, deletions=Deletions(cycle, pruner))
    loop = Loop(guest.before(waiting.turn), Pace(chosen.reconcile_seconds), log, bugs_allowed=3)
    waiting.when_over = loop.stop
    if started.machines:
        with catalogue.store.watch(catalogue.tree.machines, NOT_ENDED, loop.wake), signals(loop):
            loop.run()
    outcomes = waiting.close()
    print(summary(started.timestamp, outcomes), flush=True)
    return INTERRUPTED + loop.stopped_by if loop.stopped_by else exit_code(outcomes)


def _say(outcome: Outcome) -> None:
    print(line(outcome), flush=True)


def _serve(chosen: ControllerSettings) -> None:
    log = logs.configure(chosen.logs, PROGRAM.name)
    metrics = Metrics()
    metrics.listen(chosen.metrics)
    readiness = Readiness.of(os.environ)
    with opened(chosen.directory) as catalogue:
        store, tree = catalogue.store, catalogue.tree
        lease = Lease(store, tree, holder_of_this_process(chosen.holder_name), chosen.lease_seconds)
        leased = Catalogue(Leased(store, lease), tree, lambda: lease.epoch)
        plans = PlanChanges(store, tree)

        def begin() -> Turn:
            # What was seen in an earlier tenure is no longer true: others have acted since.
            cycle = _cycle(leased, chosen, log, metrics, plans)
            scheduler = _scheduler(leased, chosen, log, plans)
            watch = Watch(leased, log, metrics, utc_now)
            pruner = Pruner(leased, ZoneInfo(chosen.timezone), log, utc_now, metrics)

            def turn() -> float:
                # What is in flight comes first: it goes on even where the plans cannot be read.
                due = [cycle.turn_and_wait(), scheduler.turn(), pruner.turn(cycle.ended_well), watch.turn()]
                return min(seconds for seconds in due if seconds is not None)

            return turn

        serving = Serving(lease, leased, begin, log, metrics, readiness.status)
        loop = Loop(serving.turn, Pace(chosen.reconcile_seconds), log, readiness)
        with (
            store.watch(tree.machines, NOT_ENDED, loop.wake) as watcher,
            store.watch(tree.configuration, LEASES, loop.wake),
            plans,
            signals(loop),
            serving,
        ):
            log.info("at work", directory=chosen.directory.uri, watch=watcher.kind, holder=lease.holder)
            loop.run()
        log.info("stopped")


def _cycle(
    catalogue: Catalogue,
    chosen: ControllerSettings,
    log: FilteringBoundLogger,
    metrics: Metrics,
    plans: PlanChanges | None = None,
) -> Cycle:
    """Without `plans` they are read now and then: a `run` is over before a watch of all plans would pay."""
    bounds, budgets = bounds_of(chosen), budgets_of(chosen)
    limited = any(budget.limits_anything for budget in budgets.values())
    places = Places(catalogue, ZoneInfo(chosen.timezone), limited, version=plans.version if plans else tuple)
    admission = Admission(places, budgets, Pulse(bounds.take_up), log, metrics)
    verdicts = Verdicts(places, bounds, log, metrics)
    return Cycle(catalogue, bounds, log, metrics, admission=admission, verdicts=verdicts)


def _scheduler(
    catalogue: Catalogue, chosen: ControllerSettings, log: FilteringBoundLogger, plans: PlanChanges
) -> Scheduler:
    lookout = Lookout(catalogue, ZoneInfo(chosen.timezone), plans.version)
    bounds = bounds_of(chosen)
    return Scheduler(lookout, bounds, log, utc_now, lambda: read_view(catalogue).leaves, _wait_a_random_moment)


def _start(catalogue: Catalogue, choices: tuple[Choice, ...], chosen: ControllerSettings) -> Started:
    return start(
        catalogue, choices, utc_now(), bounds_of(chosen), lambda: read_view(catalogue).leaves, _wait_a_random_moment
    )


def _wait_a_random_moment(round_number: int) -> None:
    time.sleep(random.uniform(0.02, 0.1 * (round_number + 1)))  # noqa: S311 - parts two controllers, protects nothing


def _print_plan(catalogue: Catalogue, chosen: ControllerSettings, names: list[str] | None) -> None:
    rehearsal = Rehearsal(catalogue.store)
    started = _start(Catalogue(rehearsal, catalogue.tree), choose(catalogue, names), chosen)
    print(comment(f"what a run would write now; nothing was written. {len(started.machines)} machines"), end="")
    for choice in started.choices:
        if choice.fate is not Fate.BACK_UP:
            code = f" (return value {int(choice.code)})" if choice.code is not ReturnValue.SUCCESS else ""
            print(comment(f"{choice.machine}: {choice.fate.value}{code}: {choice.sentence}"), end="")
    print("\n" + rehearsal.to_ldif(), end="")


def _names(machines: list[str] | None, everything: bool) -> list[str] | None:
    if bool(machines) == everything:
        raise typer.BadParameter("name the machines, or say --all (one of the two)")
    return None if everything else machines
