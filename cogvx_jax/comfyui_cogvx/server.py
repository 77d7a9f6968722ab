"""The calls of a `cogvx serve` that the nodes need."""

import dataclasses
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

TIMEOUT = 60.0  # seconds without a byte; the server's events come more often
TRIES = 5  # in a row, to reach a server that was reached before
PAUSE = 1.0  # seconds between two of them
MAX_JSON = 16 * 2**20  # bytes of an answer or an event
COMPLETED, FAILED, DELETED = "completed", "failed", "deleted"
ENDED = (COMPLETED, FAILED, DELETED)


class ServerError(RuntimeError):
    """What the server refuses, in its own words, or why it cannot be asked."""


class Unreachable(ServerError):
    """No answer came."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key is for one server alone."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


@dataclasses.dataclass(frozen=True)
class Server:
    """A server by its address.

    Args:
      key: as it is, or $NAME, a variable of the environment, which is read for each call; none is sent where that is
        not set.
    Raises: ServerError for what is no address.
    """

    url: str
    key: str = dataclasses.field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"the url of a server is such as http://127.0.0.1:8000, got {self.url[:80]!r}")

    def post(self, path: str, fields: dict[str, Any] | None = None, once: str | None = None) -> dict[str, Any]:
        """Sends JSON, and gives that of the answer.

        Args:
          once: a name of the request: sent again with it, it is not done twice.
        Raises: ServerError.
        """
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": once} if once else {})
        body = json.dumps(fields or {}).encode()
        for left in reversed(range(TRIES if once else 1)):
            try:
                with self._open(path, headers, body) as answer:
                    return json.loads(answer.read(MAX_JSON))
            except Unreachable:
                if not left:
                    raise
                time.sleep(PAUSE)
            except (OSError, ValueError) as error:
                raise ServerError(f"{self.url} gave no answer that can be read: {error}") from None
        raise AssertionError

    def content(self, id: str) -> bytes:
        """The mp4 of a video that is whole. Raises: ServerError."""
        try:
            with self._open(f"/v1/videos/{id}/content", {}) as answer:
                data = answer.read()
        except OSError as error:
            raise ServerError(f"the video {id} did not come from {self.url}: {error}") from None
        if data[4:8] != b"ftyp":
            raise ServerError(f"{self.url} gave no mp4 as the video {id}")
        return data

    def events(self, id: str) -> Iterator[dict[str, Any]]:
        """A video each time that it has changed, until it has ended; a lost connection is made again.

        Each has the `status` "queued", "in_progress", "completed", "failed" or "deleted".
        Raises: ServerError.
        """
        last, left = "", TRIES
        while True:
            try:
                with self._open(f"/v1/videos/{id}/events", {"Last-Event-ID": last} if last else {}) as stream:
                    for revision, told in _events(stream):
                        last, left = revision, TRIES
                        yield told
                        if told["status"] in ENDED:
                            return
                problem: Exception = Unreachable("the events ended before the video")
            except (Unreachable, OSError) as error:
                problem = error
            left -= 1
            if not left:
                raise ServerError(f"{self.url} was lost while it made the video {id}: {problem}") from None
            time.sleep(PAUSE)

    def _open(self, path: str, headers: dict[str, str], body: bytes | None = None) -> Any:
        key = os.environ.get(self.key[1:], "") if self.key.startswith("$") else self.key
        headers |= {"Authorization": f"Bearer {key.strip()}"} if key.strip() else {}
        request = urllib.request.Request(self.url.strip().rstrip("/") + path, body, headers)
        try:
            return _OPENER.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            raise ServerError(_sentence(error)) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise Unreachable(f"{self.url} cannot be reached: {reason}; is `cogvx serve` running there?") from None


def _sentence(error: urllib.error.HTTPError) -> str:
    """What the server says is wrong."""
    try:
        return str(json.loads(error.read(MAX_JSON))["error"]["message"])
    except (OSError, ValueError, LookupError, TypeError):
        return f"{error.url} answered {error.code} {error.reason}"


def _events(stream: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The id and the data of each server-sent event."""
    id, kind, data = "", "", ""
    while line := stream.readline(MAX_JSON):
        name, _, value = line.decode().rstrip("\r\n").partition(": ")
        if name == "id":
            id = value
        elif name == "event":
            kind = value
        elif name == "data":
            data = value
        elif not name and data:
            yield id, {**json.loads(data), "status": kind}
            kind, data = "", ""
