"""Entries as LDIF (RFC 2849), for a set's copy of a machine's directory entry and for plans that are printed.

Nothing is read back here.
"""

import io
from collections.abc import Iterable

from ldif import LDIFWriter

from vmkeep.directory.port import Entry


def to_ldif(entries: Iterable[Entry]) -> str:
    """The entries in the order given, ready for `ldapadd`."""
    text = io.BytesIO()
    writer = LDIFWriter(text)
    for entry in entries:
        # As text, not bytes: bytes would be written in base64 even where a person could read them.
        writer.unparse(entry.dn, {name: list(values) for name, values in entry.attributes.items()})
    return text.getvalue().decode()
