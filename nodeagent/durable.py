"""Makes the names in a directory durable: for the agent's own state, which lies below no root of the plans."""

import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """What was made, renamed or removed here survives a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
