"""The lab's own error: a sentence for the person who runs it. Raised by every module of the lab."""


class LabError(Exception):
    """Something the lab needs is missing, in the way, or did not come up in time."""
