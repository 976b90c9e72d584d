"""What a libvirt connection that was closed under a call is taken for: gone, so that the next call opens it anew."""

import libvirt
import pytest

from nodeagent.host.connection import _is_away


def test_an_error_of_a_closed_connection_means_that_it_is_gone() -> None:
    connection = libvirt.open("test:///default")
    with pytest.raises(libvirt.libvirtError) as raised:
        connection.lookupByName("nobody")
    assert not _is_away(connection, raised.value)
    connection.close()
    assert _is_away(connection, raised.value)
