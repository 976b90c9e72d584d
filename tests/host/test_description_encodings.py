"""A description is read as libvirt reads it, whatever encoding it declares: else one is shown and another one run."""

from collections.abc import Iterator
from typing import Any

import libvirt
import pytest
from lxml import etree

from nodeagent.host.description import parse_xml
from nodeagent.host.errors import HostFailure

# In HZ what stands between ~{ and ~} are Chinese characters, two bytes each; libvirt reads bytes as UTF-8, always.
HIDDEN = "~{a<emulator>/evil</emulator>a~}"
SHOWN = "<emulator>/usr/bin/qemu-system-x86_64</emulator>"
ENCODINGS = (
    "HZ",
    "HZ-GB-2312",
    "UTF-7",
    "UTF-16",
    "UTF-32",
    "ISO-8859-1",
    "IBM037",
    "SHIFT_JIS",
    "ISO-2022-JP",
    "UTF-8",
)


@pytest.fixture(scope="module")
def libvirts() -> Iterator[Any]:
    """libvirt itself, with machines that exist in its memory alone."""
    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


def description(encoding: str, devices: str = "", title: str = "t") -> str:
    return (
        f"<?xml version='1.0' encoding='{encoding}'?><domain type='test'><name>m</name>"
        f"<uuid>11111111-2222-4333-8444-555555555555</uuid><title>{title}</title><memory>131072</memory>"
        f"<os><type>hvm</type></os><devices>{devices}{SHOWN}</devices></domain>"
    )


def as_libvirt_reads(connection: Any, xml: str) -> tuple[str, str]:
    domain = connection.defineXML(xml)
    try:
        root = etree.fromstring(domain.XMLDesc().encode())
    finally:
        domain.undefine()
    return root.findtext("title") or "", root.findtext("devices/emulator") or ""


def as_we_read(xml: str) -> tuple[str, str]:
    root = parse_xml(xml)
    return root.findtext("title") or "", root.findtext("devices/emulator") or ""


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("title", ["t", "é", "\\ ~", "+ADw-/title+AD4-"])
@pytest.mark.parametrize("devices", ["", HIDDEN], ids=["nothing hidden", "hidden"])
def test_what_we_check_is_what_libvirt_acts_on(libvirts: Any, encoding: str, title: str, devices: str) -> None:
    xml = description(encoding, devices, title)
    try:
        ours = as_we_read(xml)
    except HostFailure:
        return  # what we do not read libvirt does not get
    assert ours == as_libvirt_reads(libvirts, xml)


def test_libvirt_does_run_what_is_hidden_so(libvirts: Any) -> None:
    """Else there would be nothing to guard against."""
    assert as_libvirt_reads(libvirts, description("HZ", HIDDEN))[1] == "/evil"
