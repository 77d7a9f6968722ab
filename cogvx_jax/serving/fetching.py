"""Files behind addresses that clients name: public ones alone, bounded in bytes and time."""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urljoin, urlsplit

from cogvx_jax.serving.refusals import Refused

REDIRECTS = 3
CONNECT, WHOLE = 5.0, 30.0  # seconds
MOVED = (301, 302, 303, 307, 308)


def is_public(address: str) -> bool:
    """Whether an address of IP is of the open internet, and not of this machine or its network."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_global and not (mapped or found).is_multicast


def fetch(url: str, field: str, most: int, allowed: Callable[[str], bool] = is_public) -> bytes:
    """The bytes behind an address of http or https. Every redirect is looked at as the first address is.

    The name is looked up once, and the connection goes to what was found: a name that means another machine the next
    time changes nothing.

    Args:
      most: bytes.
      allowed: says of an address of IP whether it may be asked.
    Raises: Refused, naming `field`.
    """
    until = time.monotonic() + WHOLE
    try:
        for _ in range(REDIRECTS + 1):
            found = _get(_split(url, field), field, most, allowed, until)
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise _refused(field, f"could not be fetched: {reason}") from None
    raise _refused(field, f"leads on more than {REDIRECTS} times")


def _refused(field: str, said: str) -> Refused:
    return Refused("invalid_value", f"the address in {field} {said}", field)


def _split(url: str, field: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise _refused(field, "must begin with http:// or https://, and hold no name of a user")
    return parts


def _get(parts: SplitResult, field: str, most: int, allowed: Callable[[str], bool], until: float) -> bytes | str:
    """The bytes, or where they have gone to."""
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    connection = http.client.HTTPConnection(host, port)
    with _connected(host, port, field, allowed) as plain:
        secure = (
            ssl.create_default_context().wrap_socket(plain, server_hostname=host) if parts.scheme == "https" else plain
        )
        connection.sock = secure
        target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        connection.request("GET", target, headers={"Accept": "image/*, video/*", "Connection": "close"})
        answer = connection.getresponse()
        if answer.status in MOVED and (place := answer.getheader("location")):
            return place
        if answer.status != 200:
            raise _refused(field, f"answers {answer.status}")
        return _read(answer, secure, field, most, until)


def _connected(host: str, port: int, field: str, allowed: Callable[[str], bool]) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(place[0]) for *_, place in found]
    if not addresses or not all(map(allowed, addresses)):
        raise _refused(field, "is not one of the open internet")
    return socket.create_connection((addresses[0], port), timeout=CONNECT)


def _read(answer: http.client.HTTPResponse, via: socket.socket, field: str, most: int, until: float) -> bytes:
    parts, count = list[bytes](), 0
    while True:
        left = until - time.monotonic()
        if left <= 0:
            raise _refused(field, f"took more than {WHOLE:g} s")
        via.settimeout(min(CONNECT, left))
        part = answer.read1(2**16)
        if not part:
            return b"".join(parts)
        count += len(part)
        if count > most:
            raise _refused(field, f"has more than {most:,} bytes")
        parts.append(part)
