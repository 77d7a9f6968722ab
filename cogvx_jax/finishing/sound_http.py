"""Sound from a maker behind an address: the pictures go there as a form, and a file of sound comes back.

    POST /  multipart/form-data: video (an .mp4), prompt, seed, seconds, fps, frames
    200     the bytes of a wav, flac, mp3, ogg or m4a file

Any other status is an error; what its body says is shown. Redirects are not followed.
"""

import contextlib
import http.client
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import SplitResult

from cogvx_jax.finishing.maker_names import KEY, split_address, where
from cogvx_jax.finishing.scene import Scene

CHUNK = 2**16  # bytes
SHOWN = 200  # characters of an error's body


def ask_address(address: str, scene: Scene, out: Path, most: int, timeout: float) -> Path:
    """Has the maker answer into `out`.

    Args:
      most: bytes of an answer.
      timeout: seconds for all of it.
    Raises: TimeoutError; OSError where it cannot be reached or refuses; ValueError for an answer that is too large.
    """
    name, parts = where(address), split_address(address)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port or (443 if secure else 80), timeout=timeout)
    late = threading.Event()
    with contextlib.closing(connection), _told(name, late, timeout):
        connection.connect()
        with _ended_after(connection.sock, timeout, late):
            _send(connection, parts, scene)
            answer = connection.getresponse()
            if answer.status != 200:
                raise OSError(f"the maker of sound at {name} answers {answer.status}{_said(answer)}")
            return _received(answer, out, most, name)


@contextlib.contextmanager
def _told(name: str, late: threading.Event, timeout: float) -> Iterator[None]:
    """Inside, what connections raise becomes one sentence."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        if late.is_set() or isinstance(error, TimeoutError):
            raise TimeoutError(
                f"the maker of sound at {name} took more than {timeout:g} s; give more by sound_timeout"
            ) from None
        ours = str(error).startswith("the maker of sound")
        if ours:
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise OSError(f"the maker of sound at {name} cannot be reached: {reason}") from None


@contextlib.contextmanager
def _ended_after(sock: socket.socket, timeout: float, late: threading.Event) -> Iterator[None]:
    """Shuts a connection down once the time is over, however slowly its bytes come."""

    def end() -> None:
        late.set()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout, end)
    timer.daemon = True
    timer.start()
    try:
        yield
        if late.is_set():  # an answer without a length may end early and look whole
            raise TimeoutError
    finally:
        timer.cancel()


def _send(connection: http.client.HTTPConnection, parts: SplitResult, scene: Scene) -> None:
    boundary = secrets.token_hex(16)
    head, tail = _form(scene, boundary)
    size = len(head) + scene.video.stat().st_size + len(tail)
    headers = {
        "Content-Type": f"multipart/form-data; boundary={boundary}",
        "Content-Length": str(size),
        "Accept": "audio/*",
        "User-Agent": "cogvx",
    }
    if key := os.environ.get(KEY, "").strip():
        headers["Authorization"] = f"Bearer {key}"
    target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    connection.request("POST", target, body=_body(head, scene.video, tail), headers=headers)


def _form(scene: Scene, boundary: str) -> tuple[bytes, bytes]:
    """What comes before the file's bytes, and what after."""
    fields = {
        "prompt": scene.prompt,
        "seed": str(scene.seed),
        "seconds": f"{scene.seconds:.6f}",
        "fps": str(scene.fps),
        "frames": str(scene.count),
    }
    mark = f"--{boundary}\r\nContent-Disposition: form-data; name="
    texts = "".join(f'{mark}"{name}"\r\n\r\n{value}\r\n' for name, value in fields.items())
    texts += f'{mark}"video"; filename="video.mp4"\r\nContent-Type: video/mp4\r\n\r\n'
    return texts.encode(), f"\r\n--{boundary}--\r\n".encode()


def _body(head: bytes, video: Path, tail: bytes) -> Iterator[bytes]:
    yield head
    with video.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
    yield tail


def _received(answer: http.client.HTTPResponse, out: Path, most: int, name: str) -> Path:
    count = 0
    with out.open("wb") as file:
        while chunk := answer.read1(CHUNK):
            count += len(chunk)
            if count > most:
                raise ValueError(f"the maker of sound at {name} sends more than {most:,} bytes; that is no such sound")
            file.write(chunk)
    if answer.length:
        raise OSError(f"the maker of sound at {name} broke off {answer.length:,} bytes before the end")
    return out


def _said(answer: http.client.HTTPResponse) -> str:
    place = answer.getheader("location")
    if place and 300 <= answer.status < 400:
        return f" and leads to {place[:SHOWN]!r}; give that address"
    text = " ".join(answer.read(4 * SHOWN).decode("utf-8", "replace").split())[:SHOWN]
    return f": {text}" if text else ""
