"""Tells systemd that a daemon is ready, alive and stopping, over the socket named in NOTIFY_SOCKET.

Used by the loop and the command lines; without systemd every call does nothing.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

_SEND_SECONDS = 1.0


@dataclass(frozen=True)
class Readiness:
    """The service manager's ear. `watchdog_seconds` is how often it wants to hear from us, None when it does not."""

    address: str | None
    watchdog_seconds: float | None

    @classmethod
    def of(cls, environment: Mapping[str, str], pid: int | None = None) -> "Readiness":
        """What the environment says; a watchdog meant for another process is not ours to feed."""
        return cls(environment.get("NOTIFY_SOCKET") or None, _watchdog(environment, pid or os.getpid()))

    def ready(self, sentence: str) -> None:
        """The daemon works now."""
        self._send(f"READY=1\nSTATUS={_one_line(sentence)}")

    def status(self, sentence: str) -> None:
        """What `systemctl status` shows."""
        self._send(f"STATUS={_one_line(sentence)}")

    def alive(self) -> None:
        """Feed the watchdog."""
        if self.watchdog_seconds is not None:
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The daemon ends by its own will."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if self.address is None:
            return
        # A leading @ stands for the abstract name space of Linux.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_SEND_SECONDS)
                sender.sendto(message.encode(), address)
        except OSError:
            # Work must not stop because nobody listens; the service manager draws its own conclusion from silence.
            return


def _watchdog(environment: Mapping[str, str], pid: int) -> float | None:
    meant_for = environment.get("WATCHDOG_PID", "")
    microseconds = environment.get("WATCHDOG_USEC", "")
    if (meant_for and meant_for != str(pid)) or not microseconds.isdigit() or int(microseconds) == 0:
        return None
    return int(microseconds) / 1_000_000


def _one_line(sentence: str) -> str:
    return " ".join(sentence.split())
