"""The namings of LoRA files, a row each: another dialect is one more row of `FORMATS`.

A LoRA has two tensors for each adapted layer ("module"): a, (r, in), and b, (out, r). It adds scale * b @ a to the
layer's weight. Dialects differ in the names of the tensors and in the scale. The name of each module of the published
transformer is spelled in every dialect, and a file's names are looked up among them: "to_out_0" cannot be taken apart.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from cogvx_jax.convert.lora_alpha import AlphaRule
from cogvx_jax.convert.sat import DEFAULT_ALPHA
from cogvx_jax.convert.tables import TRANSFORMER, TRANSPOSE

# Of a module's tensors: `bias` is PEFT's, which the scale multiplies; `diff` and `diff_b` are whole differences of
# weight and bias, which it does not.
Part = Literal["a", "b", "alpha", "bias", "diff", "diff_b"]

# Modules of the published transformers, {i} counts blocks.
PATCH = "patch_embed.proj"
LINEAR = (PATCH, *(row.theirs.removesuffix(".weight") for row in TRANSFORMER if row.change is TRANSPOSE))
MODULES = (PATCH, *(row.theirs.removesuffix(".weight") for row in TRANSFORMER if row.theirs.endswith(".weight")))


class Name(NamedTuple):
    """What a tensor's name says; `known` is whether it is of a module of the published transformers."""

    module: str
    part: Part
    adapter: str | None
    known: bool


def itself(module: str) -> tuple[str, ...]:
    return (module,)


def untouched(key: str) -> tuple[str, str | None]:
    return key, None


def without_adapter(key: str) -> tuple[str, str | None]:
    """A name without that of PEFT's adapter, and the latter: ".lora_A.default.weight" is ".lora_A.weight"."""
    match = re.search(r"(\.lora_[AB])\.([^.]+)(\.weight|\.bias)\Z", key)
    return (key, None) if match is None else (f"{key[: match.start()]}{match[1]}{match[3]}", match[2])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A naming: prefix, spelling of a module, end.

    name: for messages.
    to: its name at `cogvx lora convert --to`; None where it is only read.
    prefixes: the first is the one that is written.
    spelled: a module of the published transformer -> its spellings, the first is the one that is written.
    ends: the text after a module -> which tensor it is; the first of a part is the one that is written.
    alpha: how the scale is found.
    tidied: brings a name into that form, and gives the name of PEFT's adapter; `finished` is its inverse.
    beside: whether a tensor may stand in such a file without being of a LoRA.
    """

    name: str
    to: str | None = None
    prefixes: tuple[str, ...]
    spelled: Callable[[str], tuple[str, ...]] = itself
    ends: Mapping[str, Part]
    alpha: AlphaRule = AlphaRule()
    tidied: Callable[[str], tuple[str, str | None]] = untouched
    finished: Callable[[str], str] = str
    beside: Callable[[str], bool] = lambda key: False

    def end(self, part: Part) -> str:
        """As it is written, and as messages have it. Raises: StopIteration where the dialect has no such tensor."""
        return next(end for end, found in self.ends.items() if found == part)

    def written(self, module: str, part: Part) -> str:
        """The name of a tensor of a published module."""
        pattern, number = numbered(module)
        spelled = self.spelled(pattern)[0].replace("{i}", number)
        return self.finished(f"{self.prefixes[0]}{spelled}{self.end(part)}")

    def names(self) -> dict[str, str]:
        """Every spelling -> the published module."""
        return {spelling: module for module in MODULES for spelling in self.spelled(module)}

    def match(self, key: str, names: Mapping[str, str]) -> Name | None:
        """What a tensor's name says in this dialect; None where it is none of it. `names` are those of `names()`."""
        tidy, adapter = self.tidied(key)
        found = None
        for prefix in self.prefixes:
            for end, part in self.ends.items():
                if tidy.startswith(prefix) and tidy.endswith(end) and len(tidy) > len(prefix) + len(end):
                    spelled = tidy[len(prefix) : -len(end)]
                    pattern, number = numbered(spelled)
                    if pattern in names and ("{i}" in pattern) == bool(number):
                        return Name(names[pattern].replace("{i}", number), part, adapter, True)
                    found = found or Name(spelled, part, adapter, False)
        return found


def numbered(name: str) -> tuple[str, str]:
    """A module's name with {i} in place of the number of its block, and that number as text; "" where it has none.

    The largest model has 42 blocks; a number above 999 is none.
    """
    match = re.search(r"(?<=blocks[._])(0|[1-9]\d{0,2})(?=[._])|(?<=layers\.)(0|[1-9]\d{0,2})(?=\.)", name, re.ASCII)
    return (name, "") if match is None else (f"{name[: match.start()]}{{i}}{name[match.end() :]}", match[0])


def underscored(module: str) -> tuple[str, ...]:
    return (module.replace(".", "_"),)


def old_diffusers(module: str) -> tuple[str, ...]:
    """Processors of attention have had its layers, "to_q_lora" and "to_out_lora"."""
    attention, _, layer = module.rpartition(".attn1.")
    if not attention:
        return (module,)
    processor = f"{attention}.attn1.processor.{layer}"
    return (module, processor, processor.removesuffix(".0"))


def diffsynth(module: str) -> tuple[str, ...]:
    """Names of DiffSynth-Studio 1.1's own transformer."""
    changes = {
        "transformer_blocks.": "blocks.",
        ".attn1.norm_": ".norm_",
        ".attn1.to_out.0": ".attn1.to_out",
        ".ff.net.0.proj": ".ff.0",
        ".ff.net.2": ".ff.2",
        "patch_embed.proj": "patchify.proj",
        "patch_embed.text_proj": "context_embedder",
        "time_embedding.linear_1": "time_embedder.timestep_embedder.0",
        "time_embedding.linear_2": "time_embedder.timestep_embedder.2",
    }
    for theirs, own in changes.items():
        module = module.replace(theirs, own)
    return (module,)


SAT_LAYERS = {"to_q": "query_key_value.0", "to_k": "query_key_value.1", "to_v": "query_key_value.2"}
SAT_LAYERS["to_out.0"] = "dense.0"


def sat(module: str) -> tuple[str, ...]:
    """SAT adapts attention alone; queries, keys and values are the numbers 0, 1 and 2 of one layer."""
    block, _, layer = module.rpartition(".attn1.")
    if layer not in SAT_LAYERS:
        return ()
    return (f"{block.replace('transformer_blocks', 'transformer.layers')}.attention.{SAT_LAYERS[layer]}",)


def number_first(key: str) -> tuple[str, str | None]:
    """SAT's "dense.matrix_A.0" as "dense.0.matrix_A"."""
    return re.sub(r"(\.matrix_[AB])(\.\d)\Z", r"\2\1", key), None


def number_last(key: str) -> str:
    return re.sub(r"(\.\d)(\.matrix_[AB])\Z", r"\2\1", key)


PEFT_ENDS: Mapping[str, Part] = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".alpha": "alpha",
}
KOHYA_ENDS: Mapping[str, Part] = {".lora_down.weight": "a", ".lora_up.weight": "b", ".alpha": "alpha"}
OLD_ENDS: Mapping[str, Part] = {
    f"{layer}.{side}.weight": part  # type: ignore[misc]
    for layer in (".lora", "_lora", ".lora_linear_layer")
    for side, part in (("down", "a"), ("up", "b"))
}

FORMATS = (
    Format(
        name="diffusers and PEFT",
        to="peft",
        prefixes=("transformer.", ""),
        ends=PEFT_ENDS,
        alpha=AlphaRule(peft=True),
        tidied=without_adapter,
    ),
    Format(
        name="raw PEFT",
        prefixes=("base_model.model.", "transformer.base_model.model.", "base_model.model.transformer."),
        ends=PEFT_ENDS,
        alpha=AlphaRule(peft=True),
        tidied=without_adapter,
    ),
    Format(
        name="kohya",
        to="kohya",
        prefixes=("lora_unet_", "lora_transformer_"),
        spelled=underscored,
        ends=KOHYA_ENDS,
        alpha=AlphaRule(zero_is_rank=True),
    ),
    Format(
        name="VideoX-Fun",
        to="fun",
        prefixes=("lora_unet__",),
        spelled=underscored,
        ends=KOHYA_ENDS,
        alpha=AlphaRule(zero_is_rank=True),
    ),
    Format(
        name="ComfyUI",
        to="comfyui",
        prefixes=("diffusion_model.", "model.diffusion_model."),
        ends={**KOHYA_ENDS, ".diff": "diff", ".diff_b": "diff_b", **PEFT_ENDS},
        tidied=without_adapter,
    ),
    Format(
        name="old diffusers",
        prefixes=("transformer.", ""),
        spelled=old_diffusers,
        ends={**OLD_ENDS, ".alpha": "alpha"},
    ),
    Format(
        name="DiffSynth",
        prefixes=("",),
        spelled=diffsynth,
        ends=PEFT_ENDS,
        alpha=AlphaRule(default=1.0, divided=False),
        tidied=without_adapter,
    ),
    Format(
        name="SAT",
        to="sat",
        prefixes=("model.diffusion_model.", ""),
        spelled=sat,
        ends={".matrix_A": "a", ".matrix_B": "b"},
        alpha=AlphaRule(default=DEFAULT_ALPHA),
        tidied=number_first,
        finished=number_last,
        beside=lambda key: ".matrix_" not in key,  # a checkpoint of the whole model
    ),
)
WRITTEN = {row.to: row for row in FORMATS if row.to}

# What a LoRA file may be of that is no LoRA as above: how it is called, and a text in the names of its tensors.
REFUSED = {
    "DoRA": re.compile(r"lora_magnitude_vector|dora_scale|magnitude|dora"),
    "LoKr": re.compile(r"\.lokr_"),
    "LoHa": re.compile(r"\.hada_"),
    "LoCon with a third tensor": re.compile(r"\.lora_mid\."),
    "OFT": re.compile(r"\.oft_"),
}
TEXT_ENCODER = re.compile(r"lora_te\d?_|text_encoders?(?:_\d)?\.|(?:base_model\.model\.)text_encoder")


def find_format(keys: Iterable[str]) -> tuple[Format, dict[str, Name], list[str]]:
    """The dialect of a file's names.

    Returns: its row, what each name of a LoRA's tensor says, and the names of tensors of a text encoder.
    Raises: ValueError for names of no LoRA, of a kind that is refused, of several adapters, and for spare ones.
    """
    keys = list(keys)
    text = [key for key in keys if TEXT_ENCODER.match(key)]
    others = [key for key in keys if not TEXT_ENCODER.match(key)]
    best, found = FORMATS[0], dict[str, Name]()
    for row in FORMATS:
        names = row.names()
        matches = {key: match for key in others if (match := row.match(key, names))}
        if _score(matches) > _score(found):
            best, found = row, matches
    _check_kind(best, found, others, text)
    adapters = sorted({name.adapter for name in found.values() if name.adapter is not None})
    if len(adapters) > 1:
        raise ValueError(f"it holds {len(adapters)} adapters ({some(adapters)}); save each on its own")
    spare = next((key for key in others if key not in found and not best.beside(key)), None)
    if spare is not None:
        raise ValueError(f"it holds {spare}, which is no part of a LoRA that can be read")
    return best, found, text


def _score(found: Mapping[str, Name]) -> tuple[int, int]:
    """How well a dialect fits: by tensors of known modules, then by those of a LoRA at all."""
    return sum(name.known and name.part != "alpha" for name in found.values()), sum(
        name.part != "alpha" for name in found.values()
    )


def _check_kind(row: Format, found: Mapping[str, Name], others: list[str], text: list[str]) -> None:
    for key in others:
        kind = None if key in found or row.beside(key) else refused_kind(key)
        if kind is not None:
            raise ValueError(f"it is a {kind} ({key}), which is not supported; save a plain LoRA")
    if all(name.part == "alpha" for name in found.values()):
        if text:
            raise ValueError(f"it adapts a text encoder alone ({text[0]}), which is left as it is here")
        known = ", ".join(row.name for row in FORMATS)
        raise ValueError(f"it holds no LoRA: none of its {len(others)} tensors has a name of {known}")


def refused_kind(key: str) -> str | None:
    """Which of `REFUSED` a tensor's name is of."""
    return next((kind for kind, pattern in REFUSED.items() if pattern.search(key)), None)


def some(names: list[str]) -> str:
    return ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])
