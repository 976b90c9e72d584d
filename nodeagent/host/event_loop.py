"""libvirt's event loop: one a process, in a thread of its own for as long as a connection needs it.

Keep-alive and events come through it. The thread is over before the last `leave` returns: Python 3.11 may crash in a
thread that returns to it from a library while the process ends.
"""

import threading

import libvirt

_LONGEST = 5.0  # seconds for what it is at to be over


class _EventLoop:
    """Counts who needs the loop. Used by `connection` only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._needed = 0
        self._registered = False
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def enter(self) -> None:
        """Have the loop run until `leave`."""
        with self._lock:
            self._needed += 1
            if self._thread is None:
                self._register()
                self._ending.clear()
                self._thread = threading.Thread(target=self._run, name="libvirt-events", daemon=True)
                self._thread.start()

    def leave(self) -> None:
        """Need it no more; the last one ends it."""
        with self._lock:
            self._needed -= 1
            if self._needed or self._thread is None:
                return
            self._ending.set()
            libvirt.virEventAddTimeout(0, _wake, None)
            self._thread.join(_LONGEST)
            self._thread = None

    def _register(self) -> None:
        if not self._registered:
            libvirt.registerErrorHandler(lambda *_: None, None)
            libvirt.virEventRegisterDefaultImpl()
            self._registered = True

    def _run(self) -> None:
        while not self._ending.is_set():
            libvirt.virEventRunDefaultImpl()


def _wake(timer: int, _nothing: object) -> None:
    libvirt.virEventRemoveTimeout(timer)


EVENT_LOOP = _EventLoop()
