"""A directory whose database is full: every write fails in slapd itself, reads go on.

LMDB reuses the pages that earlier writes freed unless somebody still reads what lay there; so somebody reads while all
the room is taken.
"""

import contextlib
from dataclasses import dataclass

import lmdb

from lab.cluster import Lab
from lab.errors import LabError

_PLENTY, _LITTLE = 1 << 30, 2 << 20  # bytes of olcDbMaxSize: as the lab has it; beyond what is used
_SIZES = (100_000, 1_000)  # of values that take what room there is


@dataclass
class FullDirectory:
    """The directory of a lab, to be filled and emptied again."""

    lab: Lab
    _reader: lmdb.Environment | None = None
    _reading: lmdb.Transaction | None = None

    def fill(self) -> None:
        """Leave no room for another write."""
        data = self.lab.directory.folder / "data"
        used = (data / "data.mdb").stat().st_blocks * 512  # it is sparse
        self._restart_with(used + _LITTLE)
        self.lab.directory.add(f"dn: {self._dn}\nobjectClass: organizationalUnit\nou: filler\n")
        self._reader = lmdb.open(str(data), readonly=True)
        self._reading = self._reader.begin()
        for size in _SIZES:
            self._add_until_it_fails(size)
        self._change_until_it_fails()

    def empty(self) -> None:
        """As an admin does: more room, then the filler goes."""
        if self._reader is None:
            return
        self._reader.close()  # ends its transaction
        self._reader = self._reading = None
        self._restart_with(_PLENTY)
        self.lab.directory.delete(self._dn)

    @property
    def _dn(self) -> str:
        return f"ou=filler,{self.lab.directory.suffix}"

    def _restart_with(self, size: int) -> None:
        self.lab.directory.set_database("olcDbMaxSize", str(size))
        self.lab.kill_directory()
        self.lab.start_directory()

    def _add_until_it_fails(self, size: int) -> None:
        entry = "dn: ou={0},{1}\nobjectClass: organizationalUnit\nou: {0}\ndescription: {2}\n"
        number = range(2 * _LITTLE // size)
        with contextlib.suppress(LabError):
            self.lab.directory.add("\n".join(entry.format(f"{size}-{each}", self._dn, "x" * size) for each in number))

    def _change_until_it_fails(self) -> None:
        """The smallest write there is: what is left after this is room for none."""
        change = f"dn: {self._dn}\nchangetype: modify\nreplace: description\ndescription: "
        with contextlib.suppress(LabError):
            self.lab.directory.modify("\n".join(f"{change}{number}\n" for number in range(1_000)))
