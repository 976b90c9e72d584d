"""The store in a real OpenLDAP: claims by compare-and-set, and lost answers looked up instead of guessed.

Opened by every program through `vmkeep.directory.open_store`; its twin without a server is `memory`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from vmkeep.contract.errors import TryLater
from vmkeep.directory import errors
from vmkeep.directory.claims import REPLACE, ClaimRequest, encoded, shows
from vmkeep.directory.connection import Connection, Page, Pool
from vmkeep.directory.equality import normal_dn
from vmkeep.directory.errors import Answer, AnswerLost, Unreachable, error_of, is_success
from vmkeep.directory.filters import render
from vmkeep.directory.matching import meets
from vmkeep.directory.port import ANYTHING, Attributes, Claim, Entry, Filter, Scope, Watcher
from vmkeep.directory.settings import DirectorySettings
from vmkeep.directory.watch import DirectoryWatcher

Result = TypeVar("Result")
_DEPTH_OF_ALL_MACHINES = 3  # names between ou=virtual machines and the suffix, itself included
_LOSES = (errors.NO_SUCH_ATTRIBUTE, errors.NO_SUCH_OBJECT, errors.ASSERTION_FAILED)


class OpenLdapStore:
    """A Store on a real server; safe for threads, each call on a connection of its own.

    One answer may take `timeout_seconds`. A write whose answer is lost is looked up on a new connection for as long
    again, and sent a second time only when the entry shows that the first had no effect.
    """

    def __init__(self, settings: DirectorySettings) -> None:
        self._settings = settings
        self._pool = Pool(settings)

    def read(self, dn: str, attributes: Sequence[str] = ()) -> Entry | None:
        """See Store."""
        with self._pool.borrowed() as connection:
            page = connection.read(dn, render(ANYTHING), attributes)
        if page.answer["result"] == errors.NO_SUCH_OBJECT:
            return None
        self._check(page.answer, dn)
        return next(iter(page.entries), None)

    def search(
        self, base: str, matching: Filter = ANYTHING, scope: Scope = Scope.SUBTREE, attributes: Sequence[str] = ()
    ) -> Iterator[Entry]:
        """See Store. Asks when the first entry is taken; each page may take `timeout_seconds`."""
        text, more = render(matching), b""
        # slapd remembers a paged search on the connection, so the connection is ours until the last page.
        with self._pool.borrowed() as connection:
            if self._is_small(base):
                page = connection.page(base, text, scope, attributes, None)
                if page.answer["result"] != errors.SIZE_LIMIT_EXCEEDED:
                    yield from self._found(page, base)
                    return
            while True:
                page = connection.page(base, text, scope, attributes, more)
                yield from self._found(page, base)
                more = page.cookie
                if not more:
                    return

    def add(self, dn: str, attributes: Attributes) -> bool:
        """See Store. After a lost answer an entry with just these values counts as ours."""
        request = {str(name): encoded(values) for name, values in attributes.items() if values}

        def send(connection: Connection) -> bool:
            return self._done(connection.add(dn, request), dn, no=errors.ENTRY_ALREADY_EXISTS)

        return self._write(dn, send, lambda entry: None if entry is None else shows(entry, attributes), yes=True)

    def claim(
        self,
        dn: str,
        expected: Mapping[str, str],
        changes: Attributes,
        additions: Attributes | None = None,
        provided: Filter = ANYTHING,
    ) -> Claim:
        """See Store."""
        request = ClaimRequest(expected, changes, additions or {}, provided)
        return self._write(
            dn, lambda connection: self._claimed(connection, dn, request), request.outcome, yes=Claim.WON
        )

    def replace(self, dn: str, changes: Attributes) -> bool:
        """See Store."""
        request = {str(name): [(REPLACE, encoded(values))] for name, values in changes.items()}

        def send(connection: Connection) -> bool:
            return self._done(connection.modify(dn, request), dn, no=errors.NO_SUCH_OBJECT)

        def look(entry: Entry | None) -> bool | None:
            return False if entry is None else shows(entry, changes) or None

        return self._write(dn, send, look, yes=True)

    def delete(self, dn: str, provided: Filter = ANYTHING) -> bool:
        """See Store."""

        def send(connection: Connection) -> bool:
            answer = connection.delete(dn, _assertion(provided))
            return answer["result"] != errors.ASSERTION_FAILED and self._done(answer, dn, no=errors.NO_SUCH_OBJECT)

        def look(entry: Entry | None) -> bool | None:
            if entry is None:
                return True
            return None if meets(entry, provided) else False

        return self._write(dn, send, look, yes=True)

    def watch(self, base: str, matching: Filter, wake: Callable[[], None], *, polls: bool = True) -> Watcher:
        """See Store. Returns at once; the first wake-up comes when everything there is has been seen."""
        return DirectoryWatcher(self._settings, base, render(matching), wake, polls=polls)

    def close(self) -> None:
        """See Store. Watches are closed by those who started them."""
        self._pool.close()

    def _is_small(self, base: str) -> bool:
        """Whether few entries lie there, as below one machine.

        Asked for pages, slapd walks through all entries of the database that match, wherever they lie: with 10,000
        machines 16 ms instead of 1.
        """
        return len(normal_dn(base)) - len(normal_dn(self._settings.suffix)) > _DEPTH_OF_ALL_MACHINES

    def _found(self, page: Page, base: str) -> Iterator[Entry]:
        if page.answer["result"] != errors.NO_SUCH_OBJECT:
            yield from page.entries
            self._check(page.answer, base)

    def _claimed(self, connection: Connection, dn: str, request: ClaimRequest) -> Claim:
        answer = connection.modify(dn, request.modifications(), _assertion(request.provided))
        if answer["result"] == errors.ATTRIBUTE_OR_VALUE_EXISTS and any(request.additions.values()):
            return self._claimed_with_less(connection, dn, request, answer)
        if answer["result"] in _LOSES:
            return Claim.LOST
        self._check(answer, dn)
        return Claim.WON

    def _claimed_with_less(self, connection: Connection, dn: str, request: ClaimRequest, answer: Answer) -> Claim:
        """A value to add is there already, which is no reason to lose: add only those that are missing."""
        entry = next(iter(connection.read(dn, render(ANYTHING), ()).entries), None)
        if entry is None or request.outcome(entry) is Claim.LOST:
            return Claim.LOST
        less = request.without_additions_in(entry)
        if less == request:
            self._check(answer, dn)
        return self._claimed(connection, dn, less)

    def _write(
        self,
        dn: str,
        send: Callable[[Connection], Result],
        look: Callable[[Entry | None], Result | None],
        yes: Result,
    ) -> Result:
        """Send a write; where the answer is lost, `look` at the entry: what came of it, or None where nothing did."""
        try:
            return self._sent(send)
        except AnswerLost:
            known = look(self._looked_up(dn))
        if known is not None:
            return known
        with suppress(AnswerLost):
            if self._sent(send) == yes:
                return yes
        # "No" to the second may be the doing of the first, carried out late.
        known = look(self._looked_up(dn))
        if known is None:
            raise Unreachable(f"the directory {self._settings.uri} twice gave no answer to a change of {dn}")
        return known

    def _sent(self, send: Callable[[Connection], Result]) -> Result:
        with self._pool.borrowed() as connection:
            return send(connection)

    def _looked_up(self, dn: str) -> Entry | None:
        patiently = Retrying(
            stop=stop_after_delay(self._settings.timeout_seconds),
            wait=wait_random_exponential(multiplier=0.02, max=1.0),
            retry=retry_if_exception_type(TryLater),
            reraise=True,
        )
        return patiently(self.read, dn)

    def _done(self, answer: Answer, dn: str, no: int) -> bool:
        if answer["result"] == no:
            return False
        self._check(answer, dn)
        return True

    def _check(self, answer: Answer, dn: str) -> None:
        if not is_success(answer):
            raise error_of(answer, f"the directory {self._settings.uri} on {dn}")


def _assertion(provided: Filter) -> str | None:
    """The filter of the assertion control (RFC 4528); None where anything is good enough."""
    return None if provided == ANYTHING else render(provided)
