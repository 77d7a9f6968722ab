"""How a LoRA's alpha and rank come to the factor of its adapters, and where alpha stands. Files are of strangers.

A dialect has an `AlphaRule`; a file of it has `Alphas`: what a user gives comes first, then a tensor of the module,
then settings of PEFT, then the dialect's default.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from cogvx_jax.json_files import quoted

MAX_ALPHA = 1e6  # PEFT's users take up to twice the rank
Config = Mapping[str, Any]  # PEFT's LoraConfig, or whatever a file says beside its tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlphaRule:
    """Of a dialect.

    default: alpha where nothing tells it; None is the rank, so that the factor is 1.
    divided: whether the factor is alpha / rank, else it is alpha.
    zero_is_rank: whether an alpha of 0 stands for the rank; else it is an error.
    peft: whether PEFT's settings count, of the file's metadata or of the file beside it.
    """

    default: float | None = None
    divided: bool = True
    zero_is_rank: bool = False
    peft: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alpha:
    """Of a module: its value, where that stands, whether the file has it, and the factor of b @ a."""

    value: float
    source: str
    stored: bool
    scale: float


class Alphas:
    """The alpha of each module of a file.

    Args:
      config: PEFT's settings; nothing for another dialect's file.
      where: they stand, for people.
      given: by the user: it counts for every module. None takes the file's.
    Raises: ValueError for an alpha that is no positive number, or settings of another kind.
    """

    def __init__(self, rule: AlphaRule, config: Config, where: str, given: float | None = None):
        self._rule, self._where = rule, where
        self._given = None if given is None else check_alpha(given)
        said = config.get("lora_alpha", config.get("alpha"))
        self._said = None if said is None else positive(said, "lora_alpha")
        self._patterns = AlphaPatterns(config.get("alpha_pattern"))
        self._rooted = flag(config, "use_rslora")

    def of(self, module: str, rank: int, tensor: float | None) -> Alpha:
        """Of a module by its published name; `tensor` is what a tensor of it says. Raises: ValueError."""
        if self._given is not None:
            return self._alpha(self._given, "given", rank, stored=True, rooted=self._rooted)
        if tensor is not None:
            if tensor == 0 and self._rule.zero_is_rank:
                return self._alpha(rank, "0 in the file, which stands for the rank", rank, stored=True)
            return self._alpha(positive(tensor, f"alpha of {module}"), "tensors of the file", rank, stored=True)
        said = self._patterns.find(module, self._said)
        if said is not None:
            return self._alpha(said, self._where, rank, stored=True, rooted=self._rooted)
        if self._rule.default is None:
            return Alpha(value=rank, source="not in the file; the rank, as in diffusers", stored=False, scale=1.0)
        own = self._rule.default
        return self._alpha(own, f"not in the file; {own:g}, the trainer's default", rank, stored=False)

    def _alpha(self, value: float, source: str, rank: int, *, stored: bool, rooted: bool = False) -> Alpha:
        divisor = (rank**0.5 if rooted else rank) if self._rule.divided else 1
        return Alpha(value=float(value), source=source, stored=stored, scale=value / divisor)


def check_alpha(value: Any) -> float:
    """An alpha that a user gives. Raises: ValueError."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = 0.0
    if isinstance(value, bool) or not 0 < number <= MAX_ALPHA:
        raise ValueError(f"alpha must be a positive number of at most {MAX_ALPHA:,.0f}, got {quoted(value)}")
    return number


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
