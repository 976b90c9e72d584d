"""The connection to libvirt's daemon: opened within a limit, kept alive, opened anew when it broke.

One is shared by all workers; libvirt's keep-alive breaks it when the daemon hangs, so every call ends. A broken one
raises HypervisorAway and the next call connects anew. libvirt sets no limit to connecting, so that is done in a thread
of its own: a daemon that takes the connection and says nothing holds up nobody. Used by `hypervisor`.
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
        self._link: _Link | None = None
        self._opening: Future[_Link] | None = None
        self._in_loop = False
        self._on_job_event = on_job_event

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            link, self._link = self._link, None
            opening, self._opening = self._opening, None
            in_loop, self._in_loop = self._in_loop, False
        if link is not None:
            link.close()
        if opening is not None:
            opening.add_done_callback(_close_late)
        if in_loop:
            EVENT_LOOP.leave()

    @contextmanager
    def used(self) -> Iterator[Any]:
        """libvirt's own connection for one call; what it refuses is a HostFailure, HypervisorAway where it is gone."""
        link = self._connect()
        try:
            yield link.connection
        except libvirt.libvirtError as why:
            if _is_away(link.connection, why):
                self._forget(link)
                raise HypervisorAway(f"libvirt at {self._uri} does not answer: {why}") from None
            raise HostFailure(f"libvirt: {why}") from None

    def _connect(self) -> "_Link":
        """The connection. One that comes too late for whoever waited serves the next call."""
        with self._lock:
            if self._link is not None:
                return self._link
            opening = self._opening = self._opening or self._open()
        try:
            link = opening.result(self._seconds)
        except TimeoutError:
            raise HypervisorAway(f"libvirt at {self._uri} did not answer within {self._seconds:g} s") from None
        except libvirt.libvirtError as why:
            self._opened(opening, None)
            raise HypervisorAway(f"libvirt at {self._uri} does not answer: {why}") from None
        self._opened(opening, link)
        return link

    def _opened(self, opening: "Future[_Link]", link: "_Link | None") -> None:
        with self._lock:
            if self._opening is opening:
                self._link, self._opening = link, None

    def _open(self) -> "Future[_Link]":
        if not self._in_loop:
            EVENT_LOOP.enter()
            self._in_loop = True
        opening: Future[_Link] = Future()
        threading.Thread(target=self._open_into, args=(opening,), name="libvirt-open", daemon=True).start()
        return opening

    def _open_into(self, opening: "Future[_Link]") -> None:
        try:
            connection = libvirt.open(self._uri)
            connection.setKeepAlive(*_keep_alive(self._seconds))
            _wait_until_known(connection, min(_FINDING_OUT, self._seconds / 2))
            events = connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, self._on_job_event, None
            )
        except libvirt.libvirtError as why:
            opening.set_exception(why)
        else:
            opening.set_result(_Link(connection, events))

    def _forget(self, link: "_Link") -> None:
        with self._lock:
            if self._link is link:
                self._link = None
        link.close()


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
