"""The error's type is the policy: try again later, refused with a return value, or (anything else) a bug.

Raised by every part; caught once per piece of work, by the runner of the agent and the cycle of the controller.
"""

from vmkeep.contract.codes import ReturnValue


class TryLater(Exception):  # noqa: N818 - named for what to do, not for what went wrong
    """The outside world is not ready; nothing is wrong with the request. The same call may go through later."""


class Refused(Exception):  # noqa: N818 - named for what happened to the request
    """The request cannot be carried out as it stands; a person has to change something.

    `code` goes to sstProvisioningReturnValue, `sentence` to vmkeepMessage: it names the machine, the value and the
    mend.
    """

    def __init__(self, code: ReturnValue, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence
