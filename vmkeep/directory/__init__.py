"""The one door to the directory: a store with claims, its OpenLDAP and in-memory forms, and a watch that wakes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmkeep.directory.port import Store
    from vmkeep.directory.settings import DirectorySettings


def open_store(settings: "DirectorySettings") -> "Store":
    """The directory these settings name. Connects at the first call, not here; to be closed by the caller."""
    # Imported late: whoever needs the port's words alone does not load the LDAP client.
    from vmkeep.directory.openldap import OpenLdapStore

    return OpenLdapStore(settings)
