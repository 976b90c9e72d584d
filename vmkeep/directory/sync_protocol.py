"""The few PDUs of content synchronization (RFC 4533) that a watch needs: the request, and the end of the refresh. Pure.

A watch only wakes its owner, so cookies, entry states and UUIDs are neither sent nor kept.
"""

REQUEST_CONTROL = "1.3.6.1.4.1.4203.1.9.1.1"
INFO_MESSAGE = "1.3.6.1.4.1.4203.1.9.1.4"

# SEQUENCE { mode ENUMERATED refreshAndPersist (3) }, without a cookie: after a crash slapd answers an old cookie with
# nothing although entries changed, and refuses a newer one until somebody writes.
REFRESH_AND_PERSIST = bytes((0x30, 0x03, 0x0A, 0x01, 0x03))

_NEW_COOKIE, _REFRESH_DELETE, _REFRESH_PRESENT = 0x80, 0xA1, 0xA2
_BOOLEAN, _OCTET_STRING = 0x01, 0x04


def ends_refresh(info: bytes) -> bool:
    """Whether a Sync Info message says that everything there is has been sent (refreshDone, TRUE by default)."""
    if not info or info[0] not in (_REFRESH_DELETE, _REFRESH_PRESENT):
        return False
    return all(value != b"\x00" for tag, value in _elements(_elements(info)[0][1]) if tag == _BOOLEAN)


def is_cookie_only(info: bytes) -> bool:
    """Whether a Sync Info message carries a new cookie and no change."""
    return bool(info) and info[0] == _NEW_COOKIE


def _elements(encoded: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each BER element, one level deep; ValueError where a length points beyond the end."""
    found, position = [], 0
    while position < len(encoded):
        tag, start, end = encoded[position], *_content(encoded, position + 1)
        found.append((tag, encoded[start:end]))
        position = end
    return found


def _content(encoded: bytes, position: int) -> tuple[int, int]:
    if position >= len(encoded):
        raise ValueError("a BER element without a length")
    length, start = encoded[position], position + 1
    if length & 0x80:
        octets = length & 0x7F
        length, start = int.from_bytes(encoded[start : start + octets]), start + octets
    if start + length > len(encoded):
        raise ValueError("a BER element that is cut off")
    return start, start + length
