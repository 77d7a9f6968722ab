"""What files say of a LoRA's alpha, the settings of PEFT beside the tensors; they may come from strangers."""

import re
from collections.abc import Mapping
from typing import Any

from cogvx_jax.json_files import quoted

MAX_ALPHA = 1e6  # PEFT's users take up to twice the rank
Config = Mapping[str, Any]  # PEFT's LoraConfig, or whatever a file says beside its tensors


class AlphaPatterns:
    """PEFT's `alpha_pattern`: ends of modules' names -> alpha; the first that fits counts.

    PEFT takes each key as a regular expression. Here it is a name, maybe after "^" or before "$", or several with "|"
    between them: a stranger's expression may take for ever. Dots may have a backslash before them.

    Raises: ValueError for another kind of pattern, and an alpha that is no positive number.
    """

    def __init__(self, found: Any):
        if not isinstance(found, dict | None):
            raise ValueError(f"its alpha_pattern is {quoted(found)}, not an object")
        self._ends: dict[str, tuple[int, float]] = {}  # name -> place of its pattern, alpha
        for place, (pattern, alpha) in enumerate((found or {}).items()):
            value = positive(alpha, f"alpha of {quoted(pattern)}")
            for part in pattern.split("|"):
                name = re.fullmatch(r"\^?(?:[\w-]|\\?\.)+\$?", part, re.ASCII)
                if name is None:
                    raise ValueError(f"its alpha_pattern {quoted(pattern)} is more than names of modules")
                self._ends.setdefault(part.removesuffix("$").replace("\\", ""), (place, value))

    def find(self, module: str, default: float | None) -> float | None:
        """The alpha of a module; `default` where no pattern fits."""
        parts = module.split(".")
        ends = [f"^{module}", *(".".join(parts[i:]) for i in range(len(parts)))]
        found = [self._ends[end] for end in ends if end in self._ends]
        return min(found)[1] if found else default


def positive(value: Any, name: str) -> float:
    """A number, or the text of one. Raises: ValueError, with `name`, for what is none or out of bounds."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        number = 0.0
    if not 0 < number <= MAX_ALPHA:
        raise ValueError(f"its {name} is {quoted(value)}, not a positive number of at most {MAX_ALPHA:,.0f}")
    return number


def flag(config: Config, name: str) -> bool:
    """A switch, which metadata have as text. Raises: ValueError for anything else."""
    value = config.get(name)
    text = str(value).lower() if isinstance(value, bool | str | None) else ""
    if text not in ("true", "false", "none", "null"):
        raise ValueError(f"its {name} is {quoted(value)}, not true or false")
    return text == "true"
