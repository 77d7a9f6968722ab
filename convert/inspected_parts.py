"""What `cogvx inspect` tells of a folder with parts of a model and no transformer, as `convert --parts` leaves one."""

from collections.abc import Collection

from cogvx_jax.convert import infer
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.dialects import open_component
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.file_kinds import Asked, Facts
from cogvx_jax.convert.inspected_models import OTHERS, numbers, use_parts, words_of
from cogvx_jax.convert.loose import CONFIGS
from cogvx_jax.convert.sources import SAT_PARTS, SINGLE, Place, is_part
from cogvx_jax.convert.taehv import is_taehv
from cogvx_jax.convert.tensors import Tensors, Unreadable
from cogvx_jax.presets import PRESETS
from cogvx_jax.storage import below

# Part -> where it may lie in a folder: as published, in a file of its own, as SAT has it.
NAMES = {part: (part, *SINGLE[part], *(name for found, name in SAT_PARTS if found == part)) for part in OTHERS}


def find_parts(place: Place) -> dict[str, Place]:
    """The parts in a folder and the file or folder of each; the first place that it may lie in counts."""
    found = {part: [below(place, name) for name in names] for part, names in NAMES.items()}
    there = {part: [where for where in places if is_part(where)] for part, places in found.items()}
    return {part: places[0] for part, places in there.items() if places}


def holds_parts(asked: Asked) -> bool:
    return asked.is_folder and bool(find_parts(asked.place))


def tell_parts(asked: Asked) -> Facts:
    parts = find_parts(asked.place)
    check_of_parts(asked, parts)
    facts: Facts = {"format": "parts of a model, without its transformer"}
    facts |= numbers({part: open_tensors(where) for part, where in parts.items()})
    for part, where in parts.items():
        if problem := part_misfit(open_component(where, part, asked.given), part):
            return facts | {"model": f"{words_of(part)} is {problem}"}
    return facts | {"use": [use_parts(parts, asked.given)]}


def check_of_parts(asked: Asked, parts: Collection[str]) -> None:
    """Raises ValueError, one sentence, where what is said is of no part that is there, none of them a transformer."""
    if asked.given and not any(asked.given.of_document(CONFIGS[part]) for part in parts):
        raise ValueError(
            f"{asked.given.said()[0]} tells about a transformer, and {asked.place} holds none; leave it out"
        )


MAKERS = {"vae": infer.infer_vae, "text_encoder": infer.infer_text_encoder}


def part_misfit(tensors: Tensors, part: str) -> str | None:
    """Why a part, by its published names, opens with no published model, a clause; None where it may."""
    if part == "vae" and is_taehv(tensors):
        return None
    if bad := next(((key, entry) for key, entry in tensors.items() if isinstance(entry, Unreadable)), None):
        return f"not one that opens: {bad[0]}: {bad[1].problem}"
    try:
        MAKERS[part](tensors, PRESETS["5b"])
    except ConversionError as error:
        return f"not one that opens: {error.problems[0]}"
    return None
