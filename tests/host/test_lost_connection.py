"""A libvirt that is not there, or whose connection was closed under a call: away, so that the next call asks anew."""

import threading

import libvirt
import pytest

from nodeagent.host.connection import _is_away
from nodeagent.host.errors import HypervisorAway
from nodeagent.host.hypervisor import Hypervisor

NOWHERE = "qemu+unix:///system?socket=/nowhere/libvirt-sock"


def test_an_error_of_a_closed_connection_means_that_it_is_gone() -> None:
    connection = libvirt.open("test:///default")
    with pytest.raises(libvirt.libvirtError) as raised:
        connection.lookupByName("nobody")
    assert not _is_away(connection, raised.value)
    connection.close()
    assert _is_away(connection, raised.value)


def test_a_daemon_that_is_not_there_is_away_each_time_it_is_asked() -> None:
    hypervisor = Hypervisor(NOWHERE, 5)
    for _ in range(2):
        with pytest.raises(HypervisorAway, match=r"^libvirt at qemu\+unix:.* does not answer: "):
            hypervisor.look("vm")
    hypervisor.close()
    hypervisor.close()


def test_the_thread_for_libvirts_events_ends_with_the_last_that_needs_it() -> None:
    assert not event_threads()
    first, second = Hypervisor(NOWHERE, 5), Hypervisor(NOWHERE, 5)
    for hypervisor in (first, second):
        with pytest.raises(HypervisorAway):
            hypervisor.versions()
    first.close()
    assert len(event_threads()) == 1
    second.close()
    assert not event_threads()


def event_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "libvirt-events"]
