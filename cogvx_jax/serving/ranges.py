"""A file of which a client may ask for parts, by the rules of RFC 9110, section 14."""

import re

from starlette.datastructures import Headers
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from cogvx_jax.serving.refusals import Refused

MANY = 100  # ranges of a request; of more the file is sent whole


class RangedFile(FileResponse):
    """The answer with a file, whose `stat_result` is given; ranges that cannot be had are `Refused`.

    Starlette's own answers a range that cannot be parsed with an error, and errors with plain text.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.stat_result is not None
        asked, condition = (Headers(scope=scope).get(name) for name in ("range", "if-range"))
        same = condition is None or condition in (self.headers["etag"], self.headers["last-modified"])
        ranges = parts_of(asked, self.stat_result.st_size) if asked is not None and same else None
        headers = [pair for pair in scope["headers"] if pair[0] != b"range"]
        if ranges is not None:
            headers.append((b"range", ranges.encode()))
        await super().__call__(dict(scope) | {"headers": headers}, receive, send)


def parts_of(text: str, size: int) -> str | None:
    """The ranges of a header that a file of `size` bytes has, as a header; None where the file is sent whole.

    Raises: Refused, 416, where it has none of them.
    """
    unit, _, rest = text.partition("=")
    parts = [part.strip() for part in rest.split(",")]
    if unit.strip().lower() != "bytes" or len(parts) > MANY or not all(map(_is_range, parts)):
        return None
    found = [part for part in parts if _begins(part, size)]
    if not found:
        said = f"the video has {size} bytes, of which {text[:60]!r} asks for none"
        raise Refused("range_not_satisfiable", said, headers={"Content-Range": f"bytes */{size}"})
    return f"bytes={','.join(found)}"


def _is_range(part: str) -> bool:
    """Whether it is FIRST-LAST, FIRST- or -LENGTH."""
    match = re.fullmatch(r"([0-9]{0,20})-([0-9]{0,20})", part)
    if match is None or not any(match.groups()):
        return False
    first, last = match.groups()
    return not (first and last) or int(first) <= int(last)


def _begins(part: str, size: int) -> bool:
    """Whether a range begins inside the file."""
    first, _, length = part.partition("-")
    return int(first) < size if first else int(length) > 0 and size > 0
