"""`vmkeep-nodeagent`: parse, call, print.

serve runs until stopped, once does what is there and ends, check looks only.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, TypeAlias

import structlog
import typer

from nodeagent.assembly import Assembly, assemble, findings
from vmkeep.service.command import Program
from vmkeep.service.daemonize import daemonized
from vmkeep.service.logs import configure
from vmkeep.service.loop import Loop, Pace, signals
from vmkeep.service.readiness import Readiness
from vmkeep.service.settings import NODE_AGENT_FILE, NodeAgentSettings

_STOP_SECONDS = 10.0
_DONE, _NOT_WELL = 0, 1

PROGRAM = Program("vmkeep-nodeagent", NodeAgentSettings, NODE_AGENT_FILE)

app = typer.Typer(help="Backs up and restores the machines of this node.", no_args_is_help=True, add_completion=False)
SettingsFile: TypeAlias = Annotated[Path | None, PROGRAM.settings_option()]


@app.callback()
def common(context: typer.Context, settings_file: SettingsFile = None) -> None:
    """Remember the settings file for the command that follows."""
    context.obj = settings_file


@app.command()
def serve(
    context: typer.Context,
    settings_file: SettingsFile = None,
    daemon: Annotated[bool, typer.Option("--daemon", help="go to the background, for hosts without systemd")] = False,
    pidfile: Annotated[Path | None, typer.Option(help="where a daemon writes its process number")] = None,
) -> None:
    """Watch for work and do it until stopped; unfinished work is gone on with first."""
    with PROGRAM.told():
        chosen = PROGRAM.settings(context, settings_file)
        with daemonized(daemon, pidfile, chosen.logs):
            _serve(chosen)


def _serve(settings: NodeAgentSettings) -> None:
    log = configure(settings.logs, PROGRAM.name)
    wakes: list[Loop] = []
    assembly = assemble(settings, lambda: wakes[0].wake() if wakes else None)
    assembly.shop.metrics.listen(settings.metrics)
    loop = Loop(assembly.agent.cycle, Pace(settings.reconcile_seconds), log, Readiness.of(os.environ))
    wakes.append(loop)
    try:
        with signals(loop), assembly.watch(loop.wake) as watcher:
            assembly.tell_clones()
            log.info("watching", node=settings.node, directory=settings.directory.uri, kind=watcher.kind)
            loop.run()
        # What is at work survives being killed; a moment's grace saves the next start some asking.
        assembly.stop_copying()
        assembly.agent.wait(_STOP_SECONDS)
        assembly.agent.wait_for_machines(settings.data_seconds)
    finally:
        assembly.close()
    log.info("stopped", node=settings.node)


@app.command()
def once(context: typer.Context, settings_file: SettingsFile = None) -> None:
    """Do everything that waits for this node now, and end."""
    with PROGRAM.told():
        chosen = PROGRAM.settings(context, settings_file)
        configure(chosen.logs, PROGRAM.name)
        left = _once(chosen)
        if left:
            PROGRAM.say_error(f"not finished, to be gone on with by the next call: {', '.join(left)}")
            raise typer.Exit(_NOT_WELL)


def _once(settings: NodeAgentSettings) -> list[str]:
    """Work until nothing is left to do; returns the journals that are left."""
    assembly = assemble(settings, lambda: None)
    try:
        _until_nothing_is_left(assembly)
        return [journal.path.name for journal in assembly.shop.journals.all()]
    finally:
        assembly.close()


def _until_nothing_is_left(assembly: Assembly) -> None:
    assembly.agent.cycle()
    while assembly.agent.is_busy:
        assembly.agent.wait(assembly.settings.progress_seconds)
        assembly.agent.cycle()


@app.command()
def check(context: typer.Context, settings_file: SettingsFile = None) -> None:
    """Look whether directory, libvirt, qemu-img and the roots answer; touch nothing."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=sys.stderr))
    with PROGRAM.told():
        assembly = assemble(PROGRAM.settings(context, settings_file), lambda: None)
        try:
            found = findings(assembly)
        finally:
            assembly.close()
    for what, finding, is_well in found:
        print(f"{'well' if is_well else 'NOT WELL':9} {what}: {finding}")
    raise typer.Exit(_DONE if all(is_well for *_, is_well in found) else _NOT_WELL)


def main() -> None:
    """Entry point of the script."""
    app(prog_name=PROGRAM.name)
