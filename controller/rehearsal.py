"""A store that reads the real directory and writes nothing: what would be added is kept, to be printed as LDIF.

`plan` runs the start of a run over it, so that what it prints is what `run` would write.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from vmkeep.directory.ldif_text import to_ldif
from vmkeep.directory.port import ANYTHING, Attributes, Claim, Entry, Filter, Scope, Store, Watcher


class Rehearsal:
    """A Store. `added` are the entries that would be written, in order."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.added: list[Entry] = []

    def read(self, dn: str, attributes: Sequence[str] = ()) -> Entry | None:
        """See Store."""
        return self._store.read(dn, attributes)

    def search(
        self, base: str, matching: Filter = ANYTHING, scope: Scope = Scope.SUBTREE, attributes: Sequence[str] = ()
    ) -> Iterator[Entry]:
        """See Store."""
        return self._store.search(base, matching, scope, attributes)

    def add(self, dn: str, attributes: Attributes) -> bool:
        """Keep the entry; as if it had been added."""
        self.added.append(Entry(dn, {str(name): tuple(map(str, values)) for name, values in attributes.items()}))
        return True

    def claim(
        self,
        dn: str,
        expected: Mapping[str, str],
        changes: Attributes,
        additions: Attributes | None = None,
        provided: Filter = ANYTHING,
    ) -> Claim:
        """Nobody claims in a rehearsal."""
        raise AssertionError(f"a rehearsal must not claim {dn}: {expected} {changes} {additions} {provided}")

    def replace(self, dn: str, changes: Attributes) -> bool:
        """Nobody changes anything in a rehearsal."""
        raise AssertionError(f"a rehearsal must not change {dn}: {changes}")

    def delete(self, dn: str, provided: Filter = ANYTHING) -> bool:
        """Nobody deletes anything in a rehearsal."""
        raise AssertionError(f"a rehearsal must not delete {dn} {provided}")

    def watch(self, base: str, matching: Filter, wake: Callable[[], None], *, polls: bool = True) -> Watcher:
        """See Store."""
        return self._store.watch(base, matching, wake, polls=polls)

    def close(self) -> None:
        """See Store."""
        self._store.close()

    def to_ldif(self) -> str:
        """The kept entries as records for ldapadd."""
        return to_ldif(self.added)


def comment(sentence: str) -> str:
    """A sentence as LDIF comment lines; nothing a machine is named can end the comment."""
    return "".join(f"# {line}\n" for line in sentence.splitlines() or [""])
