"""Files and folders of CogVideo (2022) for `cogvx inspect`: the whole, a stage of SAT's, both tokenizers, clusters.

The last three are known by what is in them, not by their names.
"""

import contextlib

from cogvx_jax.cli.cogvideo2022 import LICENCE, licence_of
from cogvx_jax.convert.cogvideo2022_folder import (
    CLUSTERS,
    CONFIG,
    FOLDERS,
    IMAGES,
    NUMBERS,
    TEXT,
    is_cogvideo2022,
    open_parts,
)
from cogvx_jax.convert.commands import command, new_name, path_word
from cogvx_jax.convert.containers import SUFFIXES, open_tensors
from cogvx_jax.convert.file_kinds import Asked, Facts, FileKind
from cogvx_jax.convert.sat_folder import find_states, has_states
from cogvx_jax.convert.tensors import Tensors
from cogvx_jax.json_files import read_json_of
from cogvx_jax.models.cogvideo2022.configs import TEXT_OFFSET
from cogvx_jax.pipelines.cogvideo2022.clusters import read_clusters
from cogvx_jax.pipelines.cogvideo2022.text import TextTokenizer
from cogvx_jax.storage import open_files

PROMPT = "一只猫在弹吉他"  # a cat plays the guitar
PROMPTS = {"English": "a red circle moves right on a white background"}  # of models that say another language
FORMAT = "a part of CogVideo (2022)"


def _is_whole(asked: Asked) -> bool:
    return asked.is_folder and is_cogvideo2022(asked.place)


def _tell_whole(asked: Asked) -> Facts:
    parts, word = open_parts(asked.place), asked.model
    lacks = [stage for stage in FOLDERS if stage not in parts.stages]
    files = open_files(asked.place)
    lacks += [name for name in (TEXT, CLUSTERS) if not files.exists(name)]
    lacks += [IMAGES[0]] if parts.images is None else []
    facts: Facts = {
        "format": "CogVideo (2022), " + ("by `cogvx convert`" if parts.shared else "as its makers left it"),
        "holds": ", ".join(parts.stages),
        "quantised": "no" if parts.how is None else parts.how.name,
        "licence": licence_of(word, parts),
    }
    use = [command("info", word)]
    if not set(lacks) & {"sequential", TEXT, CLUSTERS, IMAGES[0]}:
        prompt = PROMPTS.get(parts.beside.language, PROMPT)
        use.insert(0, command("generate", prompt, "--model", word, "--out", "out.mp4"))
    if not parts.shared:
        use.append(command("convert", path_word(asked.place), new_name(asked.place, "-shared")))
    return facts | ({"lacks": ", ".join(lacks)} if lacks else {}) | {"use": use}


def _stage_tensors(asked: Asked) -> Tensors | None:
    """Those of a folder that SAT saved, where they are of a stage; else None."""
    if not asked.is_folder:
        return None
    with contextlib.suppress(ValueError, OSError):  # whoever tells of it says what is wrong
        if has_states(asked.place):
            tensors = open_tensors(find_states(asked.place))
            return tensors if any(name.startswith("mixins.attention_plus.") for name in tensors) else None
    return None


def _tell_stage(asked: Asked) -> Facts:
    tensors = _stage_tensors(asked)
    assert tensors is not None
    files, stage = open_files(asked.place), None
    if not any(name.startswith("mixins.attention_plus.attn_distribution.") for name in tensors):
        stage = "super_resolution"
    elif files.exists(CONFIG):
        number = read_json_of(files, CONFIG).get("cogvideo_stage")
        stage = NUMBERS.get(number) if isinstance(number, int) else None
    what, names = ("a stage", " or ".join(FOLDERS.values())) if stage is None else (stage, FOLDERS[stage])
    return {
        "format": f"{FORMAT}: a transformer, saved by SAT",
        "holds": f"{len(tensors)} tensors of {what}",
        "mind": f"it belongs beside the others, as {names}",
        "licence": LICENCE,
    }


def _is_images(asked: Asked) -> bool:
    if asked.is_folder or not str(asked.place).endswith(SUFFIXES):
        return False
    with contextlib.suppress(ValueError, OSError):
        tensors = open_tensors(asked.place)
        return "quantize.embed.weight" in tensors and any(name.startswith("decs.") for name in tensors)
    return False


def _is_text(asked: Asked) -> bool:
    if asked.is_folder or not str(asked.place).endswith(".model"):
        return False
    with contextlib.suppress(ValueError, OSError):
        return bool(TextTokenizer.read(asked.place).size)
    return False


def _is_clusters(asked: Asked) -> bool:
    if asked.is_folder or not str(asked.place).endswith(".npy"):
        return False
    with contextlib.suppress(ValueError, OSError):
        return bool(len(read_clusters(asked.place, TEXT_OFFSET).codes))
    return False


def _tell_beside(what: str, name: str, **more: str) -> Facts:
    return {"format": f"{FORMAT}: {what}", **more, "mind": f"it belongs beside its transformers, as {name}"}


def _tell_text(asked: Asked) -> Facts:
    pieces = TextTokenizer.read(asked.place).size - TEXT_OFFSET
    return _tell_beside("the text tokenizer", TEXT, holds=f"{pieces:,} pieces")


def _tell_clusters(asked: Asked) -> Facts:
    clusters, most = read_clusters(asked.place, TEXT_OFFSET).codes.shape
    return _tell_beside("the table of clusters", CLUSTERS, holds=f"{clusters} clusters of at most {most} codes")


KINDS = (
    FileKind(name="CogVideo (2022)", fits=_is_whole, tell=_tell_whole),
    FileKind(name="a stage of CogVideo (2022)", fits=lambda a: _stage_tensors(a) is not None, tell=_tell_stage),
    FileKind(
        name="an image tokenizer of CogVideo (2022)",
        fits=_is_images,
        tell=lambda asked: _tell_beside("the image tokenizer", IMAGES[0]),
    ),
    FileKind(name="a text tokenizer of CogVideo (2022)", fits=_is_text, tell=_tell_text),
    FileKind(name="clusters of CogVideo (2022)", fits=_is_clusters, tell=_tell_clusters),
)
