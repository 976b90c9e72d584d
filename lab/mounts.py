"""Mounts of the lab: small RAM disks for its nodes, and finding what is still mounted below a folder."""

import re
from pathlib import Path

from lab import programs
from lab.errors import LabError

_OCTAL = re.compile(r"\\([0-7]{3})")


def mount_ram(folder: Path, mib: int) -> None:
    """Mount a RAM disk of `mib` MiB on a folder."""
    programs.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0755", "vmkeep-lab", folder], limit=10)


def below(folder: Path) -> list[Path]:
    """Every mount point at or below a folder, deepest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(_OCTAL.sub(lambda found: chr(int(found.group(1), 8)), line.split()[4])) for line in lines]
    return sorted((point for point in points if point.is_relative_to(folder)), key=lambda p: -len(p.parts))


def unmount_below(folder: Path) -> None:
    """Unmount everything at or below a folder; a busy one is detached, so nobody can see it any more."""
    for point in below(folder):
        try:
            programs.run(["umount", point], limit=20)
        except LabError:
            programs.run(["umount", "--lazy", point], limit=20)
