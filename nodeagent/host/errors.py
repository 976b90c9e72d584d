"""How the host says no. The runner turns a `HostFailure` into the return value of the step it happened in."""

from vmkeep.contract.errors import TryLater


class HostFailure(Exception):  # noqa: N818 - the field's word
    """A program, libvirt or a file refused; the text is for people."""


class TookTooLong(HostFailure):
    """A program did not end in its time and was stopped; done again at once it would take as long."""


class HypervisorAway(TryLater):
    """libvirt's daemon does not answer; it may be restarting."""


class NotAnImage(HostFailure):
    """A file is no qcow2 image at all, so it lies over nothing."""
