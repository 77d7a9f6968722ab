"""Which parameters a run trains: those whose paths match patterns. The rest is frozen."""

import fnmatch
from collections.abc import Sequence
from typing import Any

from flax import traverse_util

EVERYTHING = ("*",)


def split(params: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """The trees of what matches any of the patterns and of what matches none.

    Args:
      params: nested dicts.
      patterns: such as "blocks/attention/*"; a star matches slashes, too.
    Raises: ValueError for a pattern that matches nothing, naming some paths.
    """
    leaves = traverse_util.flatten_dict(params, sep="/")
    for pattern in patterns:
        if not fnmatch.filter(leaves, pattern):
            some = ", ".join(sorted(leaves)[:: max(1, len(leaves) // 8)])
            raise ValueError(f"no parameter matches {pattern!r}; some of the {len(leaves)} are {some}")
    chosen = {path for path in leaves if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)}
    found = ({p: x for p, x in leaves.items() if (p in chosen) == wanted} for wanted in (True, False))
    trained, frozen = (traverse_util.unflatten_dict(part, sep="/") for part in found)
    return trained, frozen


def join(frozen: Any, trained: Any) -> Any:
    """What `split` took apart."""
    leaves = traverse_util.flatten_dict(frozen) | traverse_util.flatten_dict(trained)
    return traverse_util.unflatten_dict(leaves)
