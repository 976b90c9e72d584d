"""Settings, log, readiness, loop and metrics, as both daemons use them."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
import structlog

from lab.waiting import until
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.service.logs import configure
from vmkeep.service.loop import Loop, Pace, TooManyBugs, signals
from vmkeep.service.metrics import Metrics
from vmkeep.service.readiness import Readiness
from vmkeep.service.settings import (
    ConsoleSettings,
    ControllerSettings,
    LogSettings,
    MetricsSettings,
    NodeAgentSettings,
    SettingsError,
    load,
)

DIRECTORY = '[directory]\nuri = "ldapi:///"\nsuffix = "dc=example,dc=org"\n'
FAST = Pace(reconcile=30, first_back_off=0.01, longest_back_off=0.05, least=0.001)


def refusal(model: type[ControllerSettings] | type[NodeAgentSettings], path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(model, path)
    return caught.value.sentence


def test_settings_have_defaults_for_everything_but_the_directory_and_the_node(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(DIRECTORY)
    assert load(ControllerSettings, path).snapshot_deadline_seconds == 600
    assert load(ConsoleSettings, path).directory.suffix == "dc=example,dc=org"
    path.write_text('node = "n1"\n' + DIRECTORY)
    agent = load(NodeAgentSettings, path)
    assert agent.effective_nvram_roots == ("/var/lib/libvirt/qemu/nvram", "/var/virtualization")
    assert (agent.limits.snapshots, agent.limits.merges, agent.limits.retains) == (2, 2, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("retries = 3\n" + DIRECTORY, "the key retries is not known; known there: directory, timezone"),
        (DIRECTORY + 'suffx = "x"\n', "the key directory.suffx is not known; known there: uri, suffix"),
        ('timezone = "Europe/Nowhere"\n' + DIRECTORY, "timezone is 'Europe/Nowhere': a time zone of the tz database"),
        ("attempts = -1\n" + DIRECTORY, "attempts is -1: Input should be greater than or equal to 0"),
        (DIRECTORY + '[logs]\nform = "xml"\n', "logs.form is 'xml': Input should be 'console' or 'json'"),
        (DIRECTORY + '[metrics]\nlisten = "9750"\n', "metrics.listen is '9750': HOST:PORT is needed"),
        ('holder_name = "a:b"\n' + DIRECTORY, "holder_name is 'a:b': a short name of plain letters is needed"),
        ("lease_seconds = 0\n" + DIRECTORY, "lease_seconds is 0: Input should be greater than 0"),
        (
            DIRECTORY + "[budgets.merges]\nbandwidth_overall = 9\n",
            "bandwidth_overall is divided among as many as may be at work at once: set overall too",
        ),
        (
            DIRECTORY + "[budgets.retains]\nper_root = 4\nbandwidth_per_root = 3\n",
            "bandwidth_per_root is less than 1 MiB/s for each of per_root: raise it to 4 or more, or lower per_root",
        ),
        (DIRECTORY + "[budgets.snapshots]\nbandwidth_overall = 9\n", "the key budgets.snapshots.bandwidth_overall is"),
        ("", "the key directory is missing"),
        ("nonsense\n", "is not TOML"),
        (DIRECTORY + 'bind_password = "geheim"\n', "the key directory.bind_password is not known"),
    ],
)
def test_a_wrong_setting_is_answered_with_file_key_value_and_what_is_allowed(
    tmp_path: Path, text: str, said: str
) -> None:
    sentence = refusal(ControllerSettings, tmp_path / "controller.toml", text)
    assert said in sentence
    assert str(tmp_path / "controller.toml") in sentence
    assert "geheim" not in sentence


def test_every_wrong_key_is_named_at_once(tmp_path: Path) -> None:
    text = 'node = ""\nimage_roots = ["images", "/x"]\nallowed_roots = []\n' + DIRECTORY
    assert len(refusal(NodeAgentSettings, tmp_path / "a.toml", text).splitlines()) == 3


def test_a_missing_settings_file_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file or directory; name another with --settings"):
        load(ControllerSettings, tmp_path / "none.toml")


def test_every_setting_has_a_description() -> None:
    for model in (ControllerSettings, NodeAgentSettings, ConsoleSettings, LogSettings, MetricsSettings):
        assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_the_json_log_is_a_line_an_event_and_never_shows_a_secret() -> None:
    stream = io.StringIO()
    try:
        log = configure(LogSettings(form="json"), "vmkeep-test", stream)
        log.info("bound", bind_password="geheim", password_file="/etc/vmkeep/password")
        log.debug("not written")
    finally:
        structlog.reset_defaults()
    [written] = stream.getvalue().splitlines()
    event = json.loads(written)
    assert (event["event"], event["level"], event["program"]) == ("bound", "info", "vmkeep-test")
    assert event["bind_password"] == "(not shown)"
    assert event["password_file"] == "/etc/vmkeep/password"


@pytest.mark.parametrize("abstract", [False, True])
def test_readiness_reaches_the_service_managers_socket(tmp_path: Path, abstract: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        name = f"@vmkeep-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
        ear.bind("\0" + name[1:] if abstract else name)
        ear.settimeout(5)
        readiness = Readiness.of({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())})
        assert readiness.watchdog_seconds == 3
        readiness.ready("at\nwork")
        readiness.alive()
        readiness.stopping()
        assert [ear.recv(100) for _ in range(3)] == [b"READY=1\nSTATUS=at work", b"WATCHDOG=1", b"STOPPING=1"]


def test_readiness_without_a_service_manager_does_nothing() -> None:
    Readiness.of({}).ready("x")
    Readiness.of({"NOTIFY_SOCKET": "/nonexistent/socket"}).ready("x")
    assert Readiness.of({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).watchdog_seconds is None


class Ear:
    """Hears what a loop tells the service manager."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.watchdog_seconds = 0.03

    def ready(self, _sentence: str) -> None:
        self.heard.append("ready")

    def status(self, _sentence: str) -> None: ...

    def alive(self) -> None:
        self.heard.append("alive")

    def stopping(self) -> None:
        self.heard.append("stopping")


def make_loop(
    cycle: Callable[[Loop], float | None], pace: Pace = FAST, **more: object
) -> tuple[Loop, list[dict[str, object]]]:
    """A loop whose cycle gets the loop itself, and what it logs."""
    written: list[dict[str, object]] = []

    def keep(_logger: object, _name: str, event: dict[str, object]) -> dict[str, object]:
        written.append(dict(event))
        raise structlog.DropEvent

    log = structlog.wrap_logger(None, processors=[keep], wrapper_class=structlog.make_filtering_bound_logger(0))
    loop = Loop(lambda: cycle(loop), pace, log, **more)  # type: ignore[arg-type]
    return loop, written


def run(loop: Loop, limit: float = 10) -> None:
    """Run a loop in a thread and demand that it ends."""
    thread = threading.Thread(target=loop.run)
    thread.start()
    thread.join(limit)
    alive = thread.is_alive()
    loop.stop()
    assert not alive, "the loop did not end in time"


def test_a_wake_up_starts_a_cycle_at_once_and_many_are_one() -> None:
    turns: list[float] = []

    def cycle(loop: Loop) -> None:
        turns.append(time.monotonic())
        if len(turns) == 1:
            for _ in range(50):
                loop.wake()
        if len(turns) == 2:
            threading.Timer(0.05, loop.stop).start()

    run(make_loop(cycle)[0])
    assert len(turns) == 2


def test_without_a_wake_up_the_next_turn_comes_when_it_is_due() -> None:
    turns: list[int] = []

    def cycle(loop: Loop) -> float:
        turns.append(1)
        if len(turns) == 3:
            loop.stop()
        return 0.01

    run(make_loop(cycle)[0])
    assert len(turns) == 3


def test_trouble_and_bugs_do_not_end_the_loop_and_only_bugs_are_logged_with_their_traceback() -> None:
    errors: list[Exception | None] = [TryLater("away"), Refused(ReturnValue.SUCCESS, "no"), ValueError("bug"), None]

    def cycle(loop: Loop) -> None:
        error = errors.pop(0)
        if error:
            raise error
        loop.stop()

    loop, written = make_loop(cycle)
    run(loop)
    assert [(event["event"], "exc_info" in event) for event in written] == [
        ("away; trying again", False),
        ("no", False),
        ("a bug ended this cycle; going on with the next", True),
        ("works again", False),
    ]


def test_a_loop_that_may_give_up_does_so_after_that_many_bugs_in_a_row() -> None:
    def cycle(_loop: Loop) -> None:
        raise ValueError("bug")

    loop, _ = make_loop(cycle, bugs_allowed=2)
    with pytest.raises(TooManyBugs, match="ValueError: bug"):
        loop.run()


def test_the_watchdog_is_fed_while_the_directory_is_away_and_not_after_a_bug() -> None:
    def away(loop: Loop) -> None:
        threading.Timer(0.1, loop.stop).start()
        raise TryLater("away")

    def bug(loop: Loop) -> None:
        threading.Timer(0.1, loop.stop).start()
        raise ValueError("bug")

    slow = Pace(reconcile=30, first_back_off=20, longest_back_off=20)
    for cycle, fed in ((away, True), (bug, False)):
        ear = Ear()
        run(make_loop(cycle, slow, readiness=ear)[0])
        assert ("alive" in ear.heard) is fed
        assert (ear.heard[0], ear.heard[-1]) == ("ready", "stopping")


def test_signals_end_and_wake_the_loop_and_are_as_before_afterwards() -> None:
    seen: list[int] = []

    def cycle(_loop: Loop) -> None:
        seen.append(1)
        os.kill(os.getpid(), signal.SIGHUP if len(seen) == 1 else signal.SIGTERM)

    loop, _ = make_loop(cycle)
    before = signal.getsignal(signal.SIGTERM)
    with signals(loop):
        loop.run()
    assert len(seen) == 2
    assert loop.stopped_by == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_the_system_hands_to_another_thread_ends_the_loop_at_once() -> None:
    ended = threading.Event()
    other = threading.Thread(target=ended.wait, args=(60,))
    other.start()

    def hand_over() -> None:
        time.sleep(0.2)  # the loop waits by then, or it is asked to end before it does
        signal.pthread_kill(other.ident, signal.SIGTERM)  # type: ignore[arg-type]

    loop, _ = make_loop(lambda _loop: None, Pace(reconcile=30))
    began = time.monotonic()
    with signals(loop):
        threading.Thread(target=hand_over).start()
        loop.run()
    ended.set()
    assert loop.stopped_by == signal.SIGTERM
    assert time.monotonic() - began < 25, "it waited for its next turn"


def test_metrics_are_answered_where_the_settings_say() -> None:
    port = free_port()
    metrics = Metrics()
    metrics.show_modes(["merging", "merging"])
    metrics.listen(MetricsSettings(listen=f"127.0.0.1:{port}"))
    text = get_metrics(port)
    assert 'vmkeep_leaves{mode="merging"} 2.0' in text
    with pytest.raises(Refused, match="cannot listen there"):
        Metrics().listen(MetricsSettings(listen=f"127.0.0.1:{port}"))


def test_the_agent_answers_metrics_while_its_directory_is_away(tmp_path: Path) -> None:
    port = free_port()
    settings = tmp_path / "agent.toml"
    directory = f'[directory]\nuri = "ldapi://{quote(str(tmp_path / "none"), safe="")}"\nsuffix = "dc=example,dc=org"\n'
    place = f'node = "n1"\nstate_directory = "{tmp_path}"\n'
    settings.write_text(f'{place}{directory}[metrics]\nlisten = "127.0.0.1:{port}"\n')
    argv = [sys.executable, "-c", "from nodeagent.cli import main; main()", "--settings", str(settings), "serve"]
    agent = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        text = until("the agent to answer", lambda: get_metrics(port), 20)
        assert "vmkeep_cycles_total 0.0" in text
        agent.terminate()
        assert agent.wait(20) == 0
    finally:
        agent.kill()
        agent.wait()


def get_metrics(port: int) -> str:
    try:
        return str(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode())
    except OSError:
        return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


DAEMON = """
import sys, time
from pathlib import Path
from vmkeep.contract.errors import Refused
from vmkeep.service.daemonize import daemonized
from vmkeep.service.settings import LogSettings
try:
    with daemonized(True, Path(sys.argv[1]), LogSettings(file=sys.argv[2])):
        print("in the background", flush=True)
        deadline = time.monotonic() + 10
        while not Path(sys.argv[3]).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
except Refused as why:
    sys.exit(str(why))
"""


def test_a_daemon_leaves_the_terminal_keeps_a_pidfile_and_lets_no_second_one_start(tmp_path: Path) -> None:
    pidfile, log, end = tmp_path / "pid", tmp_path / "log", tmp_path / "end"
    argv = [sys.executable, "-c", DAEMON, str(pidfile), str(log), str(end)]
    pidfile.write_text("999999999\n")  # left behind by one that was killed
    assert subprocess.run(argv, timeout=20, check=False, capture_output=True).returncode == 0
    until("the daemon to write its log", lambda: log.exists() and "in the background" in log.read_text(), 10)
    pid = int(pidfile.read_text())
    second = subprocess.run(argv, timeout=20, check=False, capture_output=True, text=True)
    assert second.returncode == 1
    assert f"process {pid} in {pidfile} is at work already" in second.stderr
    end.touch()
    until("the pidfile to go", lambda: not pidfile.exists(), 10)
