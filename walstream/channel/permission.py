"""What policies on ``messages`` may grant somebody in a private room, and the question that is put to them.

How the question is answered is the shell's (``database.topic_policies``); what members may by their rank is in
``registry``.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias


class Reading(NamedTuple):
    """What somebody may receive (Supabase: Realtime Authorization, SELECT by ``extension``)."""

    broadcast: bool
    presence: bool

    @property
    def any(self) -> bool:
        """Whether there is anything to be in the room for."""
        return self.broadcast or self.presence


class Writing(NamedTuple):
    """What somebody may send (INSERT by ``extension``). ``persistence``: have a message of one's own stored."""

    broadcast: bool
    presence: bool
    persistence: bool


class Trouble(NamedTuple):
    """Why there is no answer, as clients know it: a code and a text."""

    code: str
    text: str


class Question(NamedTuple):
    """Whether somebody may read, or where ``writes`` write, in a private room.

    ``claims`` and ``headers``: JSON object texts. ``channel_id``: of the registered channel that the topic is, if any.
    """

    role: str
    sub: str
    claims: str
    headers: str
    topic: str
    channel_id: str | None = None
    writes: bool = False


Answer: TypeAlias = Reading | Writing | Trouble

READS_ALL: Final = Reading(True, True)
READS_NOTHING: Final = Reading(False, False)
WRITES_ALL: Final = Writing(True, True, True)
WRITES_NOTHING: Final = Writing(False, False, False)

UNREACHED: Final = Trouble("UnableToConnectToProject", "Realtime was unable to connect to the project database")
CANCELED: Final = Trouble("QueryCanceled", "Query was cancelled, please try again")
BUSY: Final = Trouble("IncreaseConnectionPool", "Please increase your connection pool size")
POLICY_ERROR: Final = "RlsPolicyError"
"""The code of a policy that failed; the text is PostgreSQL's, for the log alone."""

_PUSH_CODES: Final = {
    UNREACHED.code: "unable_to_connect_to_project",
    CANCELED.code: "query_canceled",
    BUSY.code: "increase_connection_pool",
    POLICY_ERROR: "rls_policy_error",
}


def push_code(trouble: Trouble) -> str:
    """The code under which the answer to a push, or to a request, names it."""
    return _PUSH_CODES.get(trouble.code, "unable_to_set_policies")


def nothing(question: Question) -> Answer:
    """The answer of no policies."""
    return WRITES_NOTHING if question.writes else READS_NOTHING
