"""What is done beside sampling, now and then, so that it takes a small share of the time."""

import contextlib
import time
from collections.abc import Iterator


class Seldom:
    """Says when it is time again.

    Args:
      share: of the time that it may take, above 0 and at most 1.
      least: seconds between two times, and before the first.
    """

    def __init__(self, share: float, least: float = 0.0):
        self._share, self._least = share, least
        self._next = time.monotonic() + least

    def due(self) -> bool:
        return time.monotonic() >= self._next

    @contextlib.contextmanager
    def doing(self) -> Iterator[None]:
        """Around what is done; how long it takes decides when the next time is."""
        began = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            self._next = ended + max(self._least, (ended - began) * (1 / self._share - 1))
