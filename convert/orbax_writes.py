"""Errors while Orbax writes: one sentence that names the place, and none of its threads beside it."""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from cogvx_jax.temporaries import never_made_again

FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


@contextlib.contextmanager
def orbax_writes(folder: Path, place: object) -> Iterator[Path]:
    """Inside, Orbax writes to the folder that this gives. Raises: OSError that names `place`, where that fails.

    Args:
      folder: one that is removed after an error, while tensorstore's threads still write.
    """
    try:
        with threads_hushed(), never_made_again(folder) as held:
            yield held
    except (ValueError, OSError) as error:  # tensorstore's are ValueErrors
        text = str(error)
        reason = next((full for full in FULL if full in text), text.partition("\n")[0][:300])
        raise OSError(f"cannot write {place}: {reason}; nothing was written") from None


@contextlib.contextmanager
def threads_hushed() -> Iterator[None]:
    """Inside, Orbax's threads do not print the errors that are raised here, too."""

    def is_other(record: logging.LogRecord) -> bool:  # a thread logs with its stack what is raised here, too
        return record.levelno < logging.ERROR or "orbax" not in record.pathname

    def hook(found: "sys.UnraisableHookArgs") -> None:
        if "Event loop is closed" not in str(found.exc_value):  # of threads that tensorstore tells too late
            before(found)

    logger, before = logging.getLogger("absl"), sys.unraisablehook
    logger.addFilter(is_other)
    sys.unraisablehook = hook
    try:
        yield
        sys.unraisablehook = before  # not after an error: its threads go on
    finally:
        logger.removeFilter(is_other)
