"""The namings of LoRA files, a row each: another dialect is one more row of `FORMATS`.

A LoRA has two tensors for each adapted linear layer ("module"): a, (r, in), and b, (out, r). It adds
alpha / r * b @ a to the layer's weight. Dialects differ in the names of the tensors and in what tells alpha.
"""

import dataclasses
import re
from collections.abc import Callable

from cogvx_jax.convert.lora_alpha import AlphaPatterns, Config, flag, positive

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
