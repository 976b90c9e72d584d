"""Connections to libvirt's daemon: opened within a limit, kept alive, each used by one thread at a time.

libvirt before 10.4 may crash a process whose threads share a connection (CVE-2024-4418): who calls takes one that is
idle, or a new one, and gives it back. libvirt's keep-alive breaks those of a daemon that hangs, so every call ends. A
broken one raises HypervisorAway, all are let go, and the next call connects anew. libvirt sets no limit to connecting,
so that is done in a thread of its own: a daemon that takes the connection and says nothing holds up nobody. Used by
`hypervisor`.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import libvirt

from nodeagent.host.errors import HostFailure, HypervisorAway
from nodeagent.host.event_loop import EVENT_LOOP

_AWAY_DOMAINS = {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE}
_FINDING_OUT, _POLL_SECONDS = 3.0, 0.02
_LONGEST_KEEPALIVE, _MOST_MISSES = 5, 3  # seconds between two signs of life; how many may fail to come


@dataclass(frozen=True)
class _Link:
    """A connection, and the number of its subscription to events, which would keep it open."""

    connection: libvirt.virConnect
    events: int

    def close(self) -> None:
        _ignoring_errors(lambda: self.connection.domainEventDeregisterAny(self.events))
        _ignoring_errors(self.connection.close)


class Connection:
    """libvirt at one URI. `on_job_event` is called, in another thread, whenever a block job changed."""

    def __init__(self, uri: str, seconds: float, on_job_event: Callable[..., None]) -> None:
        self._uri = uri
        self._seconds = seconds
        self._lock = threading.Lock()
        self._idle: list[_Link] = []
        self._opening: Future[_Link] | None = None
        self._is_known = False  # whether the daemon has found out about its machines
        self._is_closed = False
        self._in_loop = False
        self._on_job_event = on_job_event

    def close(self) -> None:
        """Let go of all that is idle; what is in use follows."""
        with self._lock:
            idle, self._idle = self._idle, []
            opening, self._opening = self._opening, None
            in_loop, self._in_loop = self._in_loop, False
            self._is_closed = True
        for link in idle:
            link.close()
        if opening is not None:
            opening.add_done_callback(_close_late)
        if in_loop:
            EVENT_LOOP.leave()

    @contextmanager
    def used(self) -> Iterator[Any]:
        """libvirt's own connection for one thread; what it refuses is a HostFailure, or HypervisorAway."""
        link = self._taken()
        is_broken = False
        try:
            yield link.connection
        except libvirt.libvirtError as why:
            is_broken = _is_away(link.connection, why)
            if is_broken:
                raise HypervisorAway(f"libvirt at {self._uri} does not answer: {why}") from None
            raise HostFailure(f"libvirt: {why}") from None
        finally:
            if is_broken:
                self._let_all_go(link)
            else:
                self._give_back(link)

    def _taken(self) -> "_Link":
        """One that nobody uses. One that comes too late for whoever waited serves the next call."""
        deadline = time.monotonic() + self._seconds
        while True:
            with self._lock:
                if self._idle:
                    return self._idle.pop()
                opening = self._opening = self._opening or self._open()
            link = self._waited_for(opening, deadline - time.monotonic())
            if self._takes(opening):
                return link

    def _waited_for(self, opening: "Future[_Link]", seconds: float) -> "_Link":
        try:
            return opening.result(max(seconds, 0))
        except TimeoutError:
            raise HypervisorAway(f"libvirt at {self._uri} did not answer within {self._seconds:g} s") from None
        except libvirt.libvirtError as why:
            self._takes(opening)
            raise HypervisorAway(f"libvirt at {self._uri} does not answer: {why}") from None

    def _takes(self, opening: "Future[_Link]") -> bool:
        """Of those who waited for one attempt, what came of it is one's."""
        with self._lock:
            is_first = self._opening is opening
            if is_first:
                self._opening = None
        return is_first

    def _give_back(self, link: "_Link") -> None:
        with self._lock:
            keeps = not self._is_closed
            if keeps:
                self._idle.append(link)
        if not keeps:
            link.close()

    def _let_all_go(self, broken: "_Link") -> None:
        """Those that are idle lead to the same daemon, which may be another one by now."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._is_known = False
        for link in (broken, *idle):
            link.close()

    def _open(self) -> "Future[_Link]":
        if not self._in_loop:
            EVENT_LOOP.enter()
            self._in_loop = True
        self._is_closed = False
        opening: Future[_Link] = Future()
        threading.Thread(target=self._open_into, args=(opening,), name="libvirt-open", daemon=True).start()
        return opening

    def _open_into(self, opening: "Future[_Link]") -> None:
        try:
            connection = libvirt.open(self._uri)
            connection.setKeepAlive(*_keep_alive(self._seconds))
            if not self._is_known:
                _wait_until_known(connection, min(_FINDING_OUT, self._seconds / 2))
                self._is_known = True
            events = connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, self._on_job_event, None
            )
        except libvirt.libvirtError as why:
            opening.set_exception(why)
        else:
            opening.set_result(_Link(connection, events))


def _wait_until_known(connection: libvirt.virConnect, seconds: float) -> None:
    """Return when the daemon has found out about its machines, at the latest after so many seconds.

    One that was just started tells of them what it remembers, and holds each for itself meanwhile. A machine that was
    being started when its predecessor died is said to run, and is then ended.
    """
    deadline = time.monotonic() + seconds
    waiting = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
    while (waiting := [domain for domain in waiting if _is_held(domain)]) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _is_held(domain: libvirt.virDomain) -> bool:
    try:
        return domain.controlInfo()[0] in (libvirt.VIR_DOMAIN_CONTROL_JOB, libvirt.VIR_DOMAIN_CONTROL_OCCUPIED)
    except libvirt.libvirtError:
        return False  # it is known by now, and off


def _keep_alive(seconds: float) -> tuple[int, int]:
    """Interval and misses after which a silent daemon is given up, within so many seconds; two at the least."""
    interval = max(1, min(_LONGEST_KEEPALIVE, int(seconds / (_MOST_MISSES + 1))))
    return interval, max(1, min(_MOST_MISSES, int(seconds / interval) - 1))


def _close_late(opening: "Future[_Link]") -> None:
    if opening.exception() is None:
        opening.result().close()


def _is_away(connection: libvirt.virConnect, why: libvirt.libvirtError) -> bool:
    if why.get_error_domain() in _AWAY_DOMAINS or why.get_error_code() in (
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_RPC,
    ):
        return True
    try:
        return not connection.isAlive()
    except libvirt.libvirtError:
        return True


def _ignoring_errors(call: Callable[[], object]) -> None:
    try:
        call()
    except libvirt.libvirtError:
        return
