"""The door to libvirt at a daemon that hangs: every call ends in time, and all goes on when the daemon does."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.cluster import Lab
from lab.hypervisor import Node
from lab.machines import MachineSpec
from lab.waiting import until
from nodeagent.host.connection import _is_held
from nodeagent.host.errors import HypervisorAway
from nodeagent.host.hypervisor import Hypervisor, View

LIMIT = 3.0
SLACK = 20.0  # a busy machine's; without a limit it would be for ever


@pytest.fixture
def node(lab: Lab) -> Node:
    return next(iter(lab.nodes.values()))


@pytest.fixture
def hypervisor(node: Node) -> Iterator[Hypervisor]:
    hypervisor = Hypervisor(node.uri, LIMIT)
    yield hypervisor
    hypervisor.close()


@contextmanager
def hanging(node: Node) -> Iterator[None]:
    """The daemon takes connections and says nothing."""
    daemon = node.libvirtd
    assert daemon is not None
    daemon.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.kill(signal.SIGCONT)


def seconds_until_away(hypervisor: Hypervisor) -> float:
    began = time.monotonic()
    with pytest.raises(HypervisorAway):
        hypervisor.versions()
    return time.monotonic() - began


def answers(hypervisor: Hypervisor) -> bool:
    try:
        return "libvirt" in hypervisor.versions()
    except HypervisorAway:
        return False


def test_a_connection_to_a_daemon_that_hangs_breaks_within_the_limit(node: Node, hypervisor: Hypervisor) -> None:
    assert answers(hypervisor)
    with hanging(node):
        assert seconds_until_away(hypervisor) < LIMIT + SLACK
    until("libvirt to answer again", lambda: answers(hypervisor), 10)


def test_connecting_to_a_daemon_that_hangs_ends_within_the_limit_and_the_late_connection_serves_the_next_call(
    node: Node, hypervisor: Hypervisor
) -> None:
    with hanging(node):
        assert LIMIT <= seconds_until_away(hypervisor) < LIMIT + SLACK
        assert seconds_until_away(hypervisor) < LIMIT + SLACK
        assert opening_threads() == 1, "many calls wait for one attempt"
    until("libvirt to answer again", lambda: answers(hypervisor), 10)
    assert opening_threads() == 0


def test_closing_leaves_no_connection_behind(node: Node, hypervisor: Hypervisor) -> None:
    before = connections_at_rest(node)
    assert answers(hypervisor)
    assert connected_sockets(node) == before + 1
    hypervisor.close()
    until("the connection to be closed", lambda: connected_sockets(node) == before, 5)


def test_a_connection_that_comes_after_nobody_wants_it_any_more_is_closed(node: Node) -> None:
    hypervisor = Hypervisor(node.uri, 0.2)
    before = connections_at_rest(node)
    with hanging(node):
        seconds_until_away(hypervisor)
        hypervisor.close()
    until("the attempt to end", lambda: opening_threads() == 0, 10)
    until("the late connection to be closed", lambda: connected_sockets(node) == before, 5)


USED_AND_CLOSED = """
import sys, threading
from nodeagent.host.hypervisor import Hypervisor, View
for _ in range(2):
    hypervisor = Hypervisor(sys.argv[1], 10)
    hypervisor.versions()
    hypervisor.close()
    print([thread.name for thread in threading.enumerate()])
"""


def test_once_closed_no_thread_of_libvirt_is_left_that_could_meet_the_end_of_the_process(node: Node) -> None:
    argv = [sys.executable, "-c", USED_AND_CLOSED, node.uri]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "['MainThread']\n" * 2), done.stderr


def opening_threads() -> int:
    return sum(thread.name == "libvirt-open" for thread in threading.enumerate())


def connections_at_rest(node: Node) -> int:
    """The lab's own connection; those of earlier tests may take a moment to end."""
    assert node.connection().isAlive()
    until("earlier connections to be closed", lambda: connected_sockets(node) == 1, 10)
    return 1


def connected_sockets(node: Node) -> int:
    """How many connections the daemon's socket has; ours and those of the lab."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    connected = "03"
    return sum(line.split()[5] == connected and line.endswith(f"{node.sockets}/libvirt-sock") for line in lines[1:])


def test_a_daemon_that_was_just_started_is_asked_once_it_has_found_out_about_its_machines(lab: Lab) -> None:
    """What it says before is what its predecessor wrote down, also of a machine that it is about to end."""
    machine = lab.add_machine(MachineSpec(kind="bios", content_mib=1))
    node = machine.node
    qemu = node.qemu(machine.name)
    assert qemu is not None
    seen: list[View | None] = []
    qemu.kill(signal.SIGSTOP)
    try:
        node.kill_libvirtd()
        node.restart_libvirtd()
        hypervisor = Hypervisor(node.uri, 60.0)
        looking = threading.Thread(target=lambda: seen.append(hypervisor.look(machine.name)))
        looking.start()
        looking.join(0.5)
        assert looking.is_alive(), "it was told of a machine that nobody has asked yet"
    finally:
        qemu.kill(signal.SIGCONT)
    looking.join(SLACK)
    assert [view is not None and view.is_active for view in seen] == [True]
    hypervisor.close()


def test_a_machine_that_went_while_a_daemon_found_out_about_it_is_waited_for_no_more(lab: Lab) -> None:
    machine = lab.add_machine(MachineSpec(kind="bios", content_mib=1))
    node = machine.node
    domain = node.domain(machine.name)
    xml = domain.XMLDesc()
    domain.destroy()
    domain.undefine()
    try:
        assert not _is_held(domain)
    finally:
        node.connection().defineXML(xml)


MANY_THREADS = """
import sys, threading
from nodeagent.host.errors import HypervisorAway
from nodeagent.host.hypervisor import Hypervisor
hypervisor, ending = Hypervisor(sys.argv[1], 3.0), threading.Event()
told = open(sys.argv[2], "ab", buffering=0)
def call():
    while not ending.is_set():
        try:
            hypervisor.versions()
        except HypervisorAway:
            told.write(b".")
            ending.wait(0.01)
threads = [threading.Thread(target=call) for _ in range(8)]
for thread in threads:
    thread.start()
print("calling", flush=True)
sys.stdin.read()
ending.set()
for thread in threads:
    thread.join()
hypervisor.close()
"""


def test_threads_that_call_while_the_daemon_hangs_do_not_crash_the_process(
    node: Node, hypervisor: Hypervisor, tmp_path: Path
) -> None:
    """They do where they share a connection whose keep-alive breaks it: libvirt before 10.4."""
    told = tmp_path / "given up"
    told.touch()
    argv = [sys.executable, "-c", MANY_THREADS, node.uri, told]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"calling\n"
        for _ in range(4):
            before = told.stat().st_size
            with hanging(node):
                until("calls to be given up", lambda b=before: process.poll() or told.stat().st_size >= b + 8, 60)
            until("libvirt to answer again", lambda: answers(hypervisor), 20)
        process.stdin.close()
        assert process.wait(60) == 0
