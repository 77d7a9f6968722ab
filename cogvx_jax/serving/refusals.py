"""What the server refuses, in the shape of each API's errors."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from cogvx_jax.serving.queue import Full, KeyUsed


class Kind(NamedTuple):
    """status: of HTTP. type: in OpenAI's shape. code: in Zhipu's."""

    status: int
    type: str
    code: str


INVALID = "invalid_request_error"
KINDS = {  # OpenAI's code -> the rest
    "missing_required_parameter": Kind(400, INVALID, "1213"),
    "unknown_parameter": Kind(400, INVALID, "1210"),
    "invalid_value": Kind(400, INVALID, "1214"),
    "invalid_request": Kind(400, INVALID, "1210"),
    "exclusive_parameters": Kind(400, INVALID, "1215"),
    "prompt_too_long": Kind(400, INVALID, "1261"),
    "invalid_api_key": Kind(401, "authentication_error", "1000"),
    "no_api_key": Kind(401, "authentication_error", "1001"),
    "token_expired": Kind(401, "authentication_error", "1003"),
    "forbidden": Kind(403, "permission_error", "1220"),
    "model_not_found": Kind(404, INVALID, "1211"),
    "not_found": Kind(404, INVALID, "1212"),
    "method_not_allowed": Kind(405, INVALID, "1210"),
    "request_timeout": Kind(408, INVALID, "1210"),
    "request_repeated": Kind(409, INVALID, "1231"),
    "not_ready": Kind(409, INVALID, "1210"),
    "body_too_large": Kind(413, INVALID, "1210"),
    "unsupported_media_type": Kind(415, INVALID, "1210"),
    "range_not_satisfiable": Kind(416, INVALID, "1210"),
    "queue_full": Kind(429, "rate_limit_error", "1302"),
    "server_error": Kind(500, "server_error", "500"),
    "not_implemented": Kind(501, INVALID, "1210"),
    "unavailable": Kind(503, "server_error", "1305"),
    "disk_full": Kind(507, "server_error", "500"),
}
ZHIPU = "/api/paas/v4/"
STATUSES_OF_ZHIPU = {"model_not_found": 400, "request_repeated": 400}  # where they differ from OpenAI's
RETRY = {"queue_full": 10, "unavailable": 5, "disk_full": 60}  # seconds


@dataclasses.dataclass
class Refused(Exception):
    """A request that is answered with an error.

    code: a key of `KINDS`.
    message: a sentence for the user.
    param: the field at fault.
    headers: of the answer, beside those of its kind.
    """

    code: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def answer(self, path: str) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, body and headers, for a request to this path."""
        kind = KINDS[self.code]
        headers = dict(self.headers)
        if self.code in RETRY:
            headers["Retry-After"] = str(RETRY[self.code])
        if kind.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if path.startswith(ZHIPU):
            error: dict[str, Any] = {"code": kind.code, "message": self.message}
            return STATUSES_OF_ZHIPU.get(self.code, kind.status), {"error": error}, headers
        error = {"message": self.message, "type": kind.type, "param": self.param, "code": self.code}
        return kind.status, {"error": error}, headers


def refusal_of(error: BaseException, is_full: bool) -> Refused | None:
    """What an error of the queue or the disk is answered with; None for one of this program."""
    if is_full:
        return Refused("disk_full", "the server's disk is full; try again later")
    if isinstance(error, Full):
        return Refused("queue_full", str(error))
    if isinstance(error, KeyUsed):
        return Refused("request_repeated", str(error))
    if isinstance(error, OSError):
        return Refused("unavailable", "the server cannot reach its queue or its files now; try again")
    return None
