"""The namings of LoRA files, a row each: another dialect is one more row of `FORMATS`.

A LoRA has two tensors for each adapted linear layer ("module"): a, (r, in), and b, (out, r). It adds
alpha / r * b @ a to the layer's weight. Dialects differ in the names of the tensors and in what tells alpha.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from cogvx_jax.json_files import quoted

MAX_ALPHA = 1e6  # PEFT's users take up to twice the rank
Config = Mapping[str, Any]  # PEFT's LoraConfig, or whatever a file says beside its tensors
Scale = Callable[[str, int], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A naming.

    name: for messages.
    key: matches a whole name; its groups are `module` and either `side`, one of `sides`, or `alpha`; where a file
      may hold several adapters, also `adapter`.
    sides: the names of a and b.
    spelled: how a module of the published transformer stands in the file.
    scale: what the file says beside its tensors -> (module, rank) -> the factor of b @ a; asked where no tensor
      tells alpha.
    written: of a name to write, with {module} and {side}.
    """

    name: str
    key: re.Pattern[str]
    sides: tuple[str, str]
    spelled: Callable[[str], str] = str
    scale: Callable[[Config], Scale]
    written: str


def peft_scale(config: Config) -> Scale:
    """By LoraConfig: alpha_pattern before lora_alpha; without either alpha is the rank, as in diffusers.

    Raises: ValueError for an alpha that is no positive number, or a pattern that is more than names.
    """
    said = config.get("lora_alpha", config.get("alpha"))
    alpha = None if said is None else positive(said, "lora_alpha")
    patterns, rooted = AlphaPatterns(config.get("alpha_pattern")), flag(config, "use_rslora")

    def scale(module: str, rank: int) -> float:
        own = patterns.find(module, alpha)
        return 1.0 if own is None else own / (rank**0.5 if rooted else rank)

    return scale


FORMATS = (
    Format(
        name="diffusers and PEFT",
        key=re.compile(
            r"(?:base_model\.model\.)?(?:transformer\.)?(?:base_model\.model\.)?(?P<module>.+?)\."
            r"(?:(?P<side>lora_[AB])(?:\.(?P<adapter>[^.]+))?\.weight|(?P<alpha>alpha))"
        ),
        sides=("lora_A", "lora_B"),
        scale=peft_scale,
        written="transformer.{module}.{side}.weight",
    ),
)

# Namings that are known, but not read: whose they are, and how their tensors are called.
UNREAD = {
    "ComfyUI": re.compile(r"diffusion_model\..+"),
    "SAT": re.compile(r"model\.diffusion_model\..+|.+\.matrix_[AB]\.\d+"),
    "LyCORIS": re.compile(r".+\.(?:lokr_w[12](?:_[ab])?|lokr_t2|hada_[wt][12](?:_[ab])?)"),
    "old diffusers": re.compile(r".+(?:\.lora|_lora|\.lora_linear_layer)\.(?:down|up)\.weight"),
    "kohya": re.compile(r"lora_(?:unet|transformer|te\d?)_.+|.+\.lora_(?:down|up)\.weight"),
}


def unread_naming(key: str) -> str | None:
    """Whose naming a tensor's name is of, where it is one of `UNREAD`."""
    return next((name for name, pattern in UNREAD.items() if pattern.fullmatch(key)), None)


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
