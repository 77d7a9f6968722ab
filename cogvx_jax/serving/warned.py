"""Warnings of one thread as sentences, while other threads of the process warn, too.

`warnings.catch_warnings` changes the whole process: two threads inside it would take each other's warnings.
"""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any

_LOCK = threading.Lock()
_FOUND: dict[int, list[str]] = {}  # of each thread that collects
_OUTSIDE = contextlib.ExitStack()  # gives back how warnings were shown, when no thread collects any more


@contextlib.contextmanager
def warned() -> Iterator[list[str]]:
    """Inside, each UserWarning of this thread is added to the list, once; it is shown as it would be otherwise.

    It is not entered twice by one thread.
    """
    found: list[str] = []
    with _LOCK:
        if not _FOUND:
            _begin()
        _FOUND[threading.get_ident()] = found
    try:
        yield found
    finally:
        with _LOCK:
            del _FOUND[threading.get_ident()]
            if not _FOUND:
                _OUTSIDE.close()


def _begin() -> None:
    """Has warnings come here, also those that came before."""
    _OUTSIDE.enter_context(warnings.catch_warnings())
    before: Any = warnings.showwarning
    warnings.simplefilter("always", UserWarning)

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        found = _FOUND.get(threading.get_ident())
        if found is not None and issubclass(category, UserWarning) and str(message) not in found:
            found.append(str(message))
        before(message, category, *where, **more)

    warnings.showwarning = show
