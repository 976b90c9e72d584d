"""What goes wrong with the directory, sorted by what to do about it, and the server's answers read into that.

Raised by the store and its connections; callers know TryLater and Refused only.
"""

from collections.abc import Mapping
from typing import Any

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater

# Result codes of RFC 4511 §4.1.9 that are told apart.
SUCCESS = 0
TIME_LIMIT_EXCEEDED = 3
SIZE_LIMIT_EXCEEDED = 4
REFERRAL = 10
ADMIN_LIMIT_EXCEEDED = 11
UNAVAILABLE_CRITICAL_EXTENSION = 12
NO_SUCH_ATTRIBUTE = 16
ATTRIBUTE_OR_VALUE_EXISTS = 20
NO_SUCH_OBJECT = 32
INSUFFICIENT_ACCESS_RIGHTS = 50
BUSY = 51
UNAVAILABLE = 52
UNWILLING_TO_PERFORM = 53
ENTRY_ALREADY_EXISTS = 68
OTHER = 80
ASSERTION_FAILED = 122
SYNC_REFRESH_REQUIRED = 4096

# slapd's words when LMDB can write no more; it rarely says why.
_WORDS_OF_A_FULL_DATABASE = ("MDB_MAP_FULL", "No space left", " failed")
_ADVICE = {
    SIZE_LIMIT_EXCEEDED: "raise this identity's limit (olcLimits: size.soft, size.hard, size.prtotal unlimited)",
    REFERRAL: "point the settings to the one writable server",
}


class Unreachable(TryLater):
    """The directory is away, or its answer was lost."""


class AnswerLost(Unreachable):
    """A request was sent and no answer came: nobody knows whether it was carried out."""


class Unwilling(TryLater):
    """The directory is there but takes no changes now: read-only, or shutting down."""


class Full(TryLater):
    """The directory cannot write: as a rule its database has no room left."""


class Overloaded(TryLater):
    """The directory is too busy or took too long."""


class NotAllowed(Refused):
    """This identity may not do that."""


Answer = Mapping[str, Any]  # the client's form of a result: result, description, message


def is_success(answer: Answer) -> bool:
    """Whether the server said yes."""
    return bool(answer["result"] == SUCCESS)


def error_of(answer: Answer, doing: str) -> TryLater | Refused:
    """The error a negative answer stands for; `doing` names the server and the DN, for people."""
    sentence = f"{doing}: {_server_words(answer)}"
    kind = _kind_of_trouble(answer)
    if kind is not None:
        return kind(f"{sentence}; will be tried again")
    refusal = NotAllowed if answer["result"] == INSUFFICIENT_ACCESS_RIGHTS else Refused
    return refusal(ReturnValue.CANNOT_CONNECT_TO_BACKEND, sentence)


def _kind_of_trouble(answer: Answer) -> type[TryLater] | None:
    code, words = answer["result"], str(answer.get("message") or "")
    if _is_full(answer):
        return Full
    if code in (BUSY, TIME_LIMIT_EXCEEDED, OTHER):
        return Overloaded
    # Outside of its suffixes slapd is "unwilling" too; that never gets better.
    if code in (UNAVAILABLE, UNWILLING_TO_PERFORM) and "superior knowledge" not in words:
        return Unwilling
    return None


def _server_words(answer: Answer) -> str:
    said = f"{answer['description']} ({answer['result']})"
    if answer.get("message"):
        said += f": {answer['message']}"
    advice = _ADVICE.get(answer["result"])
    if _is_full(answer):
        advice = "its database or its disk is full: look at olcDbMaxSize and at slapd's log"
    return f"{said}; {advice}" if advice else said


def _is_full(answer: Answer) -> bool:
    words = str(answer.get("message") or "")
    could_not_write = answer["result"] == OTHER and any(part in words for part in _WORDS_OF_A_FULL_DATABASE)
    return could_not_write or bool(answer["result"] == ADMIN_LIMIT_EXCEEDED)
