"""SAT, in which the authors train: its names of tensors, and how they become the published ones and back.

A row is a tensor of SAT, cut along its first axis into equal chunks, and the published tensors that these make. The
layers' `{i}`, and `{p}`, "weight" or "bias", are the same on both sides.

Source: CogVideo, `tools/convert_weight_sat2hf.py`, and `sat/`.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from cogvx_jax.convert.bounds import MAX_LEVELS
from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.tensors import Computed, Entry, Joined, Renamed, Tensors, Unreadable

PREFIXES = {"transformer": "model.diffusion_model.", "vae": "first_stage_model."}
TEXT_ENCODER = "conditioner.embedders.0.transformer."
# Names that a file has at once where the whole model was trained; of other components, they are not spare.
WHOLE = (*PREFIXES.values(), "conditioner.")


@dataclasses.dataclass(frozen=True)
class SatRow:
    theirs: str
    published: Mapping[str, tuple[int, ...]]  # name -> which chunks of theirs it is made of
    chunks: int = 1

    @classmethod
    def same(cls, theirs: str, published: str) -> "SatRow":
        return cls(theirs, {published: (0,)})


LAYER, BLOCK = "transformer.layers.{i}", "transformer_blocks.{i}"
TRANSFORMER = (
    SatRow(
        f"{LAYER}.attention.query_key_value.{{p}}",
        {f"{BLOCK}.attn1.to_{side}.{{p}}": (place,) for place, side in enumerate("qkv")},
        chunks=3,
    ),
    SatRow.same(f"{LAYER}.attention.dense.{{p}}", f"{BLOCK}.attn1.to_out.0.{{p}}"),
    SatRow.same(f"{LAYER}.mlp.dense_h_to_4h.{{p}}", f"{BLOCK}.ff.net.0.proj.{{p}}"),
    SatRow.same(f"{LAYER}.mlp.dense_4h_to_h.{{p}}", f"{BLOCK}.ff.net.2.{{p}}"),
    SatRow.same(f"{LAYER}.input_layernorm.{{p}}", f"{BLOCK}.norm1.norm.{{p}}"),
    SatRow.same(f"{LAYER}.post_attention_layernorm.{{p}}", f"{BLOCK}.norm2.norm.{{p}}"),
    # Shift, scale and gate: of attention and MLP for the video, then of both for the text.
    SatRow(
        "mixins.adaln_layer.adaLN_modulations.{i}.1.{p}",
        {f"{BLOCK}.norm1.linear.{{p}}": (0, 1, 2, 6, 7, 8), f"{BLOCK}.norm2.linear.{{p}}": (3, 4, 5, 9, 10, 11)},
        chunks=12,
    ),
    SatRow.same("mixins.adaln_layer.query_layernorm_list.{i}.{p}", f"{BLOCK}.attn1.norm_q.{{p}}"),
    SatRow.same("mixins.adaln_layer.key_layernorm_list.{i}.{p}", f"{BLOCK}.attn1.norm_k.{{p}}"),
    SatRow.same("transformer.final_layernorm.{p}", "norm_final.{p}"),
    SatRow.same("time_embed.0.{p}", "time_embedding.linear_1.{p}"),
    SatRow.same("time_embed.2.{p}", "time_embedding.linear_2.{p}"),
    SatRow.same("ofs_embed.0.{p}", "ofs_embedding.linear_1.{p}"),
    SatRow.same("ofs_embed.2.{p}", "ofs_embedding.linear_2.{p}"),
    SatRow.same("mixins.patch_embed.proj.{p}", "patch_embed.proj.{p}"),
    SatRow.same("mixins.patch_embed.text_proj.{p}", "patch_embed.text_proj.{p}"),
    SatRow.same("mixins.pos_embed.pos_embedding", "patch_embed.pos_embedding"),
    SatRow.same("mixins.final_layer.norm_final.{p}", "norm_out.norm.{p}"),
    SatRow.same("mixins.final_layer.linear.{p}", "proj_out.{p}"),
    SatRow.same("mixins.final_layer.adaLN_modulation.1.{p}", "norm_out.linear.{p}"),
)
# Tables and caches of SAT, computed anew wherever they are needed.
IDLE = {
    "transformer": re.compile(r".*(embed_tokens|freqs_sin|freqs_cos|position_embedding).*"),
    "vae": re.compile(r"(.*\.)?loss\..*"),
}
MARKS = {
    "transformer": re.compile(
        r"(?P<prefix>.*?)transformer\.layers\.0\.attention\.query_key_value(\.original)?\.weight"
    ),
    "vae": re.compile(r"(?P<prefix>.*?)encoder\.down\.0\.block\.0\.conv1\.conv\.weight"),
}


def vae_rows(levels: int) -> tuple[SatRow, ...]:
    """The VAE's; `{t}` is the rest of a name. SAT counts the decoder's levels from the other end."""
    rows = [SatRow.same(f"{side}.{end}.{{t}}", f"{side}.{end}.{{t}}") for side in SIDES for end in ENDS]
    for side in SIDES:
        rows += [SatRow.same(f"{side}.mid.block_{j + 1}.{{t}}", f"{side}.mid_block.resnets.{j}.{{t}}") for j in (0, 1)]
    for level in range(levels):
        for theirs, ours, sampling in (
            (f"encoder.down.{level}", f"encoder.down_blocks.{level}", "downsample"),
            (f"decoder.up.{levels - 1 - level}", f"decoder.up_blocks.{level}", "upsample"),
        ):
            rows += [
                SatRow.same(f"{theirs}.block.{{i}}.nin_shortcut.{{t}}", f"{ours}.resnets.{{i}}.conv_shortcut.{{t}}"),
                SatRow.same(f"{theirs}.block.{{i}}.{{t}}", f"{ours}.resnets.{{i}}.{{t}}"),
                SatRow.same(f"{theirs}.{sampling}.{{t}}", f"{ours}.{sampling}rs.0.{{t}}"),
            ]
    return tuple(rows)


SIDES, ENDS = ("encoder", "decoder"), ("conv_in", "norm_out", "conv_out")


def read_sat(tensors: Tensors, component: str, alpha: float | None = None) -> Tensors | None:
    """A component of a file of SAT's under its published names; None where it has none.

    Layers with a LoRA are merged: W + alpha / rank * B A.

    Args:
      alpha: of the LoRA, which the file does not tell; `lora_alpha` of the run's yaml. None is SAT's default.
    """
    prefix = find_prefix(tensors, component)
    if prefix is None:
        return None
    found = Renamed()
    for name in tensors:
        own = name.removeprefix(prefix)
        if (name.startswith(prefix) or not name.startswith(WHOLE)) and not IDLE[component].fullmatch(own):
            found.add(own, tensors[name], name)
    if component == "vae":
        return tensors.of(_published(found, vae_rows(_levels(found))))
    merged = _published(_merged(found, DEFAULT_ALPHA if alpha is None else alpha), TRANSFORMER)
    if _is_2b(merged):
        # Its positions are computed; where a file holds them, they are that table.
        merged.pop("patch_embed.pos_embedding", None)
    return tensors.of(merged)


def read_sat_lora(tensors: Tensors) -> Tensors | None:
    """The LoRA that a file of SAT's holds beside the weights of its transformer, without a prefix; None without one."""
    prefix = find_prefix(tensors, "transformer")
    names = [] if prefix is None else [name for name in tensors if name.startswith(prefix)]
    own = {name.removeprefix(prefix or ""): tensors[name] for name in names}
    found = {name: entry for name, entry in own.items() if (match := ADAPTED.fullmatch(name)) and match["side"]}
    return tensors.of(found) if found else None


def find_prefix(tensors: Iterable[str], component: str) -> str | None:
    """The text before SAT's names of a component; None where there are none of it."""
    pattern = MARKS.get(component)
    found = (pattern.fullmatch(name) for name in tensors) if pattern else iter(())
    return next((match["prefix"] for match in found if match), None)


def write_sat(tensors: Sequence[Tensor], component: str, levels: int = 4) -> list[Tensor]:
    """Published tensors as SAT has them, without a prefix.

    Args:
      levels: of the VAE.
    Raises: ValueError for a name that SAT has none for.
    """
    rows, left = TRANSFORMER if component == "transformer" else vae_rows(levels), {t.key: t for t in tensors}
    patterns = [(row, name, _pattern(name)) for row in rows for name in row.published]
    written = []
    for tensor in tensors:
        if tensor.key not in left:
            continue
        row, match = next(
            ((row, m) for row, _, pattern in patterns if (m := pattern.fullmatch(tensor.key))), (None, None)
        )
        if row is None or match is None:
            raise ValueError(f"SAT has no name for {tensor.key}")
        parts = {name: left.pop(name.format(**match.groupdict()), None) for name in row.published}
        missing = [name.format(**match.groupdict()) for name, part in parts.items() if part is None]
        if missing:
            raise ValueError(f"SAT holds {tensor.key} together with {missing[0]}, which is missing")
        written.append(_whole(row, row.theirs.format(**match.groupdict()), parts))
    return written


def _whole(row: SatRow, name: str, parts: Mapping[str, Tensor | None]) -> Tensor:
    """The tensor of SAT that published ones make."""
    tensors = {published: part for published, part in parts.items() if part is not None}
    first = next(iter(tensors.values()))
    if row.chunks == 1:
        return dataclasses.replace(first, key=name)
    shape = (sum(tensor.shape[0] for tensor in tensors.values()), *first.shape[1:])
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1:
        raise ValueError(f"SAT holds {name} as one tensor, but its parts are of {len(dtypes)} types")

    def make() -> np.ndarray:
        chunks: dict[int, np.ndarray] = {}
        for published, places in row.published.items():
            chunks |= zip(places, np.split(tensors[published].make(), len(places)), strict=True)
        return np.concatenate([chunks[place] for place in range(row.chunks)])

    return Tensor(name, shape, first.dtype, make)


def _published(found: Mapping[str, Entry], rows: Sequence[SatRow]) -> dict[str, Entry]:
    """SAT's tensors under their published names; those of no row keep theirs."""
    patterns = [(row, _pattern(row.theirs)) for row in rows]
    entries = Renamed()
    for name, entry in found.items():
        row, match = next(((row, m) for row, pattern in patterns if (m := pattern.fullmatch(name))), (None, None))
        if row is None or match is None or not _divides(entry, row.chunks):
            entries.add(name, entry, name)
            continue
        for published, places in row.published.items():
            entries.add(published.format(**match.groupdict()), _chunks(entry, row.chunks, places), name)
    return entries


def _divides(entry: Entry, chunks: int) -> bool:
    return chunks == 1 or isinstance(entry, Unreadable) or (len(entry.shape) > 0 and entry.shape[0] % chunks == 0)


def _chunks(entry: Entry, count: int, places: tuple[int, ...]) -> Entry:
    """Some of the equal chunks of an entry; neighbours are read in one piece."""
    if count == 1 or isinstance(entry, Unreadable):
        return entry
    size = entry.shape[0] // count
    return Joined.of([entry.rows(first * size, (last + 1) * size) for first, last in _runs(places)])


def _runs(places: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(0, 1, 2, 6, 7) -> (0, 2), (6, 7)."""
    first = places[0]
    for place, following in zip(places, (*places[1:], None), strict=True):
        if following != place + 1:
            yield first, place
            first = following or 0


# LoRA inside SAT's files.

DEFAULT_ALPHA = 1.0
ADAPTED = re.compile(r"(?P<layer>.+)\.(?:original\.(?P<own>weight|bias)|matrix_(?P<side>[AB])\.(?P<place>\d))")


def _merged(found: Mapping[str, Entry], alpha: float) -> dict[str, Entry]:
    """The tensors with each LoRA added to its layer, whose name is then that of a layer without one."""
    adapters: dict[str, dict[tuple[int, str], Entry]] = {}
    merged = Renamed()
    for name, entry in found.items():
        if (adapted := ADAPTED.fullmatch(name)) and adapted["side"]:
            adapters.setdefault(adapted["layer"], {})[int(adapted["place"]), adapted["side"]] = entry
        else:
            merged.add(name, entry, name)
    for layer, sides in adapters.items():
        original = merged.pop(f"{layer}.original.weight", None)
        places = sorted({place for place, _ in sides})
        if original is None or not _fit(original, sides, places):
            merged |= {f"{layer}.matrix_{side}.{place}": entry for (place, side), entry in sides.items()}  # spare
            merged |= {} if original is None else {f"{layer}.original.weight": original}
            continue
        rows = original.shape[0] // len(places)
        parts = [
            _added(original.rows(place * rows, (place + 1) * rows), sides[place, "A"], sides[place, "B"], alpha)
            for place in places
        ]
        merged.add(f"{layer}.weight", Joined.of(parts), f"{layer}.original.weight")
        if (bias := merged.pop(f"{layer}.original.bias", None)) is not None:
            merged.add(f"{layer}.bias", bias, f"{layer}.original.bias")
    return merged


def _fit(original: Entry, sides: Mapping[tuple[int, str], Entry], places: list[int]) -> bool:
    """Whether the sides of a LoRA are whole and fit the layer's weight."""
    if len(original.shape) != 2 or places != list(range(len(places))) or original.shape[0] % len(places):
        return False
    if len(sides) != 2 * len(places) or any(len(entry.shape) != 2 for entry in sides.values()):
        return False
    out, features = original.shape[0] // len(places), original.shape[1]
    return all(
        sides[place, "A"].shape[1] == features
        and sides[place, "B"].shape == (out, sides[place, "A"].shape[0])
        and sides[place, "A"].shape[0] > 0
        for place in places
    )


def _added(weight: Entry, a: Entry, b: Entry, alpha: float) -> Entry:
    make = functools.partial(add_lora, scale=alpha / a.shape[0])
    return Computed(weight.shape, weight.dtype, (weight, a, b), make)


def add_lora(weight: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """W + scale * B A, summed in float32, of W's type."""
    delta = b.astype(np.float32) @ a.astype(np.float32)
    return (weight.astype(np.float32) + np.float32(scale) * delta).astype(weight.dtype)


def _is_2b(published: Mapping[str, Entry]) -> bool:
    """Whether it is 2B, by its width and because it takes no image."""
    patches, out = published.get("patch_embed.proj.weight"), published.get("proj_out.weight")
    if patches is None or out is None or len(patches.shape) != 4 or len(out.shape) != 2:
        return False
    width, channels, height, across = patches.shape
    return width == 1920 and channels * height * across == out.shape[0]


def _levels(found: Iterable[str]) -> int:
    numbers = [int(match[1]) for name in found if (match := re.match(r"encoder\.down\.(\d{1,2})\.", name))]
    return min(max(numbers, default=0) + 1, MAX_LEVELS)


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    groups = {"i": r"\d{1,4}", "p": "weight|bias", "t": r".+"}
    return re.compile(re.sub(r"\\{(\w)\\}", lambda match: f"(?P<{match[1]}>{groups[match[1]]})", re.escape(name)))
