"""Shows a backup of a running cluster, and proves it: `make demo`."""

from lab.errors import LabError


def run() -> int:
    """Run the demo; 0 when everything was as promised."""
    raise LabError("the demo is not written yet")
