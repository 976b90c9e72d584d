"""The page cache at the start of a measurement: every one begins in the same state."""

import os
from pathlib import Path


def warm(path: Path) -> None:
    """Bring a file into the state every measurement begins with: written back, and in the page cache as a whole."""
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        while file.read(1 << 20):
            pass
