"""Where the first process of a run listens: its address, and whether it answers."""

import contextlib
import os
import re
import socket
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

WARN = 5.0  # seconds of waiting after which a line says so
PAUSE = 0.3  # seconds between tries
TRY = 5.0  # seconds for one try


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address of "HOST:PORT" or "[IPV6]:PORT". Raises: ValueError."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([^:\s\[\]/]+)):(\d{1,5})", text)
    if match is None or not 0 < int(match[3]) < 2**16:
        raise ValueError(
            f"JAX_COORDINATOR_ADDRESS is {text!r}; it must be HOST:PORT, such as 10.0.0.1:1234, the port at most 65535"
        )
    return Address(match[1] or match[2], int(match[3]))


def wait_for_coordinator(address: Address, seconds: float) -> None:
    """Returns once something listens there. Raises: TimeoutError after so many seconds, with the reason."""

    def connect() -> None:
        with socket.create_connection(address, timeout=TRY):
            pass

    _retry(connect, f"process 0 at {address}", seconds)


def check_own_address(address: Address, seconds: float) -> None:
    """Checks, in the first process, that its port is free and that the address leads here.

    Raises: OSError if the port is taken; TimeoutError if the address does not lead here within so many seconds.
    """
    try:
        listener = socket.create_server(
            ("", address.port),
            family=socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET,
            dualstack_ipv6=socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise OSError(
            f"process 0 cannot listen on port {address.port} of JAX_COORDINATOR_ADDRESS: {reason}; "
            "give all processes another one"
        ) from None
    with listener:
        _retry(lambda: _call(address, listener), f"this process, number 0, at {address}", seconds)


def _call(address: Address, listener: socket.socket) -> None:
    """Raises: OSError unless bytes that are sent to the address arrive at the listener."""
    sent = os.urandom(16)
    listener.settimeout(TRY)
    with socket.create_connection(address, timeout=TRY) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        for _ in range(100):  # other processes of the run may call, too
            called, _ = listener.accept()
            with called, contextlib.suppress(OSError):
                called.settimeout(TRY)
                if called.recv(16, socket.MSG_WAITALL) == sent:
                    return
    raise OSError("another host answers")


def _retry(attempt: Callable[[], None], whom: str, seconds: float) -> None:
    began, warned = time.monotonic(), False
    while True:
        try:
            return attempt()
        except OSError as error:
            reason = error.strerror or str(error)
        waited = time.monotonic() - began
        if waited >= seconds:
            raise TimeoutError(
                f"{whom} did not answer in {seconds:g} s: {reason}; start it, or correct JAX_COORDINATOR_ADDRESS"
            )
        if waited > WARN and not warned:
            warnings.warn(f"waiting up to {seconds:g} s for {whom}: {reason}", stacklevel=3)
            warned = True
        time.sleep(PAUSE)
