"""What a connection may do to the server: bounds of bodies while they are read, deadlines, pages of other origins."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cogvx_jax.serving.refusals import Refused

Scope: TypeAlias = dict[str, Any]
Message: TypeAlias = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SILENT = 10.0  # seconds in which a connection must send the headers of a request, or the next part of a body
SLOWEST = 32 * 2**10  # bytes a second that a body must come with, beyond the first minute
MAX_JSON = 32 * 2**20
MAX_HELD = 2**30  # bytes of all bodies at a time
MAX_HEADERS = 64 * 2**10
LINGER, LINGER_BYTES = 2.0, 2**19  # of a body that is not wanted: seconds, and bytes
SAFE = ("GET", "HEAD", "OPTIONS")


class Guard:
    """The outermost part of the app. What it refuses, no other part has seen.

    Args:
      limit: bytes of a body; one of JSON may have at most `MAX_JSON`.
      origins: such as https://example.com, whose pages may send requests. None but our own may otherwise: a browser
        sends a form to any address, also of this machine.
      hosts: by which names the server may be called; () is any. A page whose name is made to mean this machine is of
        our own origin otherwise.
      silent: seconds in which the next part of a body must come.
    """

    def __init__(
        self,
        app: App,
        limit: int,
        origins: tuple[str, ...] = (),
        hosts: tuple[str, ...] = (),
        silent: float = SILENT,
    ):
        self._app, self._limit, self._origins, self._hosts, self._silent = app, limit, origins, hosts, silent
        self._held = _Held()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        body = _Body(receive, self._most(headers), self._silent, self._held)

        async def sent(message: Message) -> None:
            await (_send_and_close(message, body, send) if body.refused else send(message))

        try:
            self._check(scope, headers, body)
        except Refused as refused:
            body.refused = True
            await _answer(scope, sent, refused)
        else:
            try:
                await self._app(scope, body.receive, sent)
            finally:
                body.release()

    def _most(self, headers: dict[str, str]) -> int:
        return min(self._limit, MAX_JSON) if "json" in headers.get("content-type", "") else self._limit

    def _check(self, scope: Scope, headers: dict[str, str], body: "_Body") -> None:
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > body.most:
            raise body.too_large()
        if self._hosts and _name_of(headers.get("host", "")) not in self._hosts:
            raise Refused("forbidden", f"this server is not called {headers.get('host', '')[:100]!r}; use --public-url")
        origin = headers.get("origin")
        if origin is None or scope["method"] in SAFE or origin in self._origins:
            return
        if origin.partition("://")[2] != headers.get("host", ""):
            raise Refused("forbidden", f"pages of {origin[:100]} may not use this server; --allow-origin allows them")


def _name_of(host: str) -> str | None:
    """The name of "name:port"; None for what is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


class _Held:
    """Bytes of all bodies that are being read or used."""

    count = 0


class _Body:
    """Passes a body on, and ends it where it is too large or too slow.

    refused: the rest of it is not wanted.
    """

    def __init__(self, receive: Receive, most: int, silent: float, held: _Held):
        self._receive, self.most, self._silent, self._held = receive, most, silent, held
        self._count, self._whole = 0, False
        self._began, self.refused = asyncio.get_running_loop().time(), False

    def too_large(self) -> Refused:
        return Refused("body_too_large", f"the body is larger than {self.most:,} bytes, which is all that is taken")

    async def receive(self) -> Message:
        if self._whole:  # what comes then says that the client has gone
            return await self._receive()
        try:
            return await self._part()
        except Refused:
            self.refused = True
            raise

    async def _part(self) -> Message:
        try:
            message = await asyncio.wait_for(self._receive(), self._silent)
        except TimeoutError:
            raise Refused("request_timeout", f"no part of the body came for {self._silent:g} s") from None
        size = len(message.get("body", b""))
        self._count += size
        self._held.count += size
        self._whole = not message.get("more_body", False)
        if self._count > self.most:
            raise self.too_large()
        if self._held.count > MAX_HELD:
            raise Refused("unavailable", "too many large requests come at a time; try again")
        seconds = asyncio.get_running_loop().time() - self._began
        if not self._whole and seconds > 60 + self._count / SLOWEST:
            raise Refused("request_timeout", "the body comes too slowly")
        return message

    def release(self) -> None:
        """Counts its bytes no more."""
        self._held.count -= self._count
        self._count = 0

    async def pass_over(self) -> None:
        """Reads a little more and drops it: a client that still sends would not read the answer otherwise."""
        try:
            async with asyncio.timeout(LINGER):
                count = 0
                while not self._whole and count < LINGER_BYTES:
                    message = await self._receive()
                    count += len(message.get("body", b""))
                    self._whole = not message.get("more_body", False)
        except TimeoutError:
            pass


async def _send_and_close(message: Message, body: _Body, send: Send) -> None:
    """Passes an answer on, after which the connection is closed."""
    if message["type"] == "http.response.start":
        await send(message | {"headers": [*message["headers"], (b"connection", b"close")]})
    elif message.get("more_body", False):
        await send(message)
    else:
        await send(message | {"more_body": True})
        await body.pass_over()
        await send({"type": "http.response.body", "body": b""})


async def _answer(scope: Scope, send: Send, refused: Refused) -> None:
    status, body, more = refused.answer(scope["path"])
    text = json.dumps(body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(text))} | more
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": text})


class ImpatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which also closes connections that send no whole headers of a request for `SILENT` seconds.

    uvicorn's own timeout is for the time between two requests.
    """

    silent = SILENT
    _patience: asyncio.TimerHandle | None = None
    _headers = 0  # bytes of headers that are not whole yet

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._answering():
            self._stop_waiting()
            return
        self._headers += len(data)
        if self._headers > MAX_HEADERS:
            self.transport.close()
        elif self._patience is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._patience = self.loop.call_later(self.silent, self._end_if_silent)

    def _stop_waiting(self) -> None:
        self._headers = 0
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _end_if_silent(self) -> None:
        self._patience = None
        if not self._answering() and not self.transport.is_closing():
            self.transport.close()
