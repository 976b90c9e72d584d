"""`vmkeep-nodeagent`: parse, call, print.

serve runs until stopped, once does what is there and ends, check looks only.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer

from nodeagent.assembly import Assembly, assemble, findings
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.service.daemonize import daemonized
from vmkeep.service.logs import configure
from vmkeep.service.loop import Loop, Pace, signals
from vmkeep.service.readiness import Readiness
from vmkeep.service.settings import NODE_AGENT_FILE, NodeAgentSettings, load

_STOP_SECONDS = 10.0
_DONE, _NOT_WELL, _USAGE = 0, 1, 2

app = typer.Typer(help="Backs up and restores the machines of this node.", no_args_is_help=True, add_completion=False)
SettingsOption = Annotated[Path | None, typer.Option("--settings", help=f"settings file; default {NODE_AGENT_FILE}")]


@app.callback()
def common(context: typer.Context, settings: SettingsOption = None) -> None:
    """Remember the settings file for the command that follows."""
    context.obj = settings


@app.command()
def serve(
    context: typer.Context,
    settings: SettingsOption = None,
    daemon: Annotated[bool, typer.Option("--daemon", help="go to the background, for hosts without systemd")] = False,
    pidfile: Annotated[Path | None, typer.Option(help="where a daemon writes its process number")] = None,
) -> None:
    """Watch for work and do it until stopped; unfinished work is gone on with first."""
    chosen = _settings(context, settings)
    try:
        with daemonized(daemon, pidfile, chosen.logs):
            _serve(chosen)
    except Refused as why:
        _say(why.sentence)
        raise typer.Exit(_USAGE) from None


def _serve(settings: NodeAgentSettings) -> None:
    log = configure(settings.logs, "vmkeep-nodeagent")
    wakes: list[Loop] = []
    assembly = assemble(settings, lambda: wakes[0].wake() if wakes else None)
    loop = Loop(assembly.agent.cycle, Pace(settings.reconcile_seconds), log, Readiness.of(os.environ))
    wakes.append(loop)
    try:
        with signals(loop), assembly.watch(loop.wake) as watcher:
            log.info("watching", node=settings.node, directory=settings.directory.uri, kind=watcher.kind)
            loop.run()
        # What is at work survives being killed; a moment's grace saves the next start some asking.
        assembly.agent.wait(_STOP_SECONDS)
        assembly.agent.wait_for_machines(settings.data_seconds)
    finally:
        assembly.close()
    log.info("stopped", node=settings.node)


@app.command()
def once(context: typer.Context, settings: SettingsOption = None) -> None:
    """Do everything that waits for this node now, and end."""
    chosen = _settings(context, settings)
    configure(chosen.logs, "vmkeep-nodeagent")
    assembly = assemble(chosen, lambda: None)
    try:
        _until_nothing_is_left(assembly)
        left = [journal.path.name for journal in assembly.shop.journals.all()]
        if left:
            _say(f"not finished, to be gone on with by the next call: {', '.join(left)}")
            raise typer.Exit(_NOT_WELL)
    except TryLater as why:
        _say(str(why))
        raise typer.Exit(_NOT_WELL) from None
    finally:
        assembly.close()


def _until_nothing_is_left(assembly: Assembly) -> None:
    assembly.agent.cycle()
    while assembly.agent.is_busy:
        assembly.agent.wait(assembly.settings.progress_seconds)
        assembly.agent.cycle()


@app.command()
def check(context: typer.Context, settings: SettingsOption = None) -> None:
    """Look whether directory, libvirt, qemu-img and the roots answer; touch nothing."""
    chosen = _settings(context, settings)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=sys.stderr))
    assembly = assemble(chosen, lambda: None)
    try:
        found = findings(assembly)
    finally:
        assembly.close()
    for what, finding, is_well in found:
        print(f"{'well' if is_well else 'NOT WELL':9} {what}: {finding}")
    raise typer.Exit(_DONE if all(is_well for *_, is_well in found) else _NOT_WELL)


def _settings(context: typer.Context, given: Path | None) -> NodeAgentSettings:
    try:
        return load(NodeAgentSettings, given or context.obj or NODE_AGENT_FILE)
    except Refused as why:
        _say(why.sentence)
        raise typer.Exit(_USAGE) from None


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def main() -> None:
    """Entry point of the script."""
    app()
