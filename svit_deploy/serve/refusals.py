"""What a client is told of a failure: a status of each protocol and one sentence, never a trace."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from svit_deploy.errors import CapabilityError, InputError, SvitDeployError

log = logging.getLogger(__name__)


class Refused(SvitDeployError):
    """A request that is not answered, whatever it holds.

    Attributes:
        http, grpc: the status, as a number and by its name.
        reason: as the metrics count it.
    """

    http = 503
    grpc = "UNAVAILABLE"
    reason = "stopping"


class Busy(Refused):
    http, grpc, reason = 429, "RESOURCE_EXHAUSTED", "queue"


class TooLarge(Refused):
    http, grpc, reason = 413, "RESOURCE_EXHAUSTED", "size"


class TooSlow(Refused):
    http, grpc, reason = 504, "DEADLINE_EXCEEDED", "timeout"


class Unauthorised(Refused):
    http, grpc, reason = 401, "UNAUTHENTICATED", "token"


class Unsupported(Refused):
    http, grpc, reason = 501, "UNIMPLEMENTED", "unsupported"


class Unknown(Refused):
    http, grpc, reason = 404, "NOT_FOUND", "unknown"


@dataclass(frozen=True)
class Answer:
    """What a client is told.

    Attributes:
        http, grpc: the status, as a number and by its name.
    """

    http: int
    grpc: str
    reason: str
    sentence: str


def answer_of(error: BaseException) -> Answer:
    """What to tell of an error; of one that nobody foresaw, the log alone is told."""
    if isinstance(error, Refused):
        return Answer(error.http, error.grpc, error.reason, str(error))
    if isinstance(error, InputError):
        return Answer(400, "INVALID_ARGUMENT", "input", str(error))
    if isinstance(error, CapabilityError):
        log.error("%s", error)
        return Answer(503, "UNAVAILABLE", "engine", "The engine cannot run this now.")
    log.error("a request failed", exc_info=error)
    return Answer(500, "INTERNAL", "internal", "Internal error; see the server's log.")
