"""Where each setting of a part of a model comes from: a configuration beside its file, the user, shapes, or a guess."""

from collections.abc import Iterable
from pathlib import Path

from cogvx_jax.convert.config import DOCUMENTS, check_class, is_configuration
from cogvx_jax.json_files import Json, read_json_of
from cogvx_jax.storage import below, open_files, parent_and_name

Place = str | Path


def read_settings(folders: Iterable[Place], path: str) -> tuple[Json, Place]:
    """A file of settings in the first folder that has it, and where that is; nothing, and "", where none has it."""
    for folder in folders:
        files = open_files(folder)
        if files.exists(path):
            return read_json_of(files, path), below(folder, path)
    return {}, ""


def settings_beside(place: Place, part: str) -> tuple[Json, Place]:
    """The published configuration of a part that lies beside its file or in its folder, and where; as `read_settings`.

    Args:
      part: field of ModelSpec. Of x.safetensors it may be in x.json, or in config.json; of vae.safetensors, where
        each part is a file called after it, in vae/config.json.
    Raises: ValueError for settings of another model, by their own words.
    """
    parent, name = parent_and_name(place)
    document = next(document for document in DOCUMENTS if document.part == part)
    folder = place if open_files(place).is_folder() else parent
    places = [(parent, f"{Path(name).stem}.json"), (folder, "config.json")]
    places += [(below(parent, part), "config.json")] if Path(name).stem == part else []
    for where, file in places:
        found, path = read_settings((where,), file)
        check_class(found, path)
        if is_configuration(found, document):
            return found, path
    return {}, ""


# Of each configuration, what shapes tell, and what they do not. Both are said where no file does.
COUNTED = {
    "transformer": (
        *("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "patch_size"),
        *("patch_size_t", "text_embed_dim", "time_embed_dim", "ofs_embed_dim"),
    ),
    "vae": ("block_out_channels", "layers_per_block", "latent_channels"),
    "text_encoder": ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "vocab_size"),
    "schedule": (),
}
TAKEN = {
    "transformer": (
        *("sample_height", "sample_width", "sample_frames", "max_text_seq_length"),
        *("use_rotary_positional_embeddings", "use_learned_positional_embeddings"),
    ),
    "vae": ("scaling_factor", "invert_scale_latents", "norm_num_groups", "temporal_compression_ratio"),
    "text_encoder": ("relative_attention_max_distance",),
    "schedule": ("snr_shift_scale",),
}


def told_lines(
    part: str, document: Json, beside: Json, where: Place | None, said: Json, name: str, has_file: bool
) -> list[str]:
    """Lines for people about where a part's settings come from.

    Args:
      part: field of ModelSpec.
      document: its configuration, of shapes and of the model `name`.
      beside, where: of `settings_beside`; without a place, where the layout has them, which is no news.
      said: by the user.
      has_file: whether there are tensors of it.
    """

    def listed(how: str, keys: Iterable[str], values: Json) -> str:
        found = [f"{key} {values[key]}" for key in keys if values.get(key) is not None]
        return f"{how}: {', '.join(found)}" if found else ""

    left = {key: value for key, value in document.items() if key not in said and key not in beside}
    told = [
        f"settings of {where}" if beside and where else "",
        listed("as given", said, said),
        listed("from its tensors", COUNTED[part], left) if has_file else "",
        listed(f"as {name} has it", TAKEN[part], left),
    ]
    text = "; ".join(filter(None, told))
    return [f"{part.replace('_', ' ')}: {text}"] if text else []
