"""What verbs do with a folder of CogVideo (2022), whose parts are not those of the other models."""

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cogvx_jax.cli.options import size_words
from cogvx_jax.given import Given
from cogvx_jax.presets import PUBLISHED_2022, SHIPPED_2022
from cogvx_jax.prompting.enhance import Endpoint, Enhancer
from cogvx_jax.prompting.wording import CHINESE, ENGLISH
from cogvx_jax.quantization import find_quantization

if TYPE_CHECKING:
    from cogvx_jax.convert.cogvideo2022_folder import Parts

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.

LICENCE = "The CogVideo License: its restrictions of use travel with the weights"


def convert(source: str, target: str, to: str, about: Given, unused: dict[str, object]) -> None:
    """Writes such a folder: the base once or, `to` "sat", as its makers left it.

    Args:
      unused: by name, what the verb was told beside that; nothing of it may be.
    """
    from cogvx_jax.convert.cogvideo2022_folder import open_parts, write_shared, write_theirs

    if to not in ("orbax", "sat"):
        raise ValueError(f"CogVideo (2022) is not written to {to}; leave --to out, or give --to sat")
    if about or (told := [name for name, value in unused.items() if value]):
        named = ", ".join(f"--{name}" for name in told) if not about else "what is said of a model's parts"
        raise ValueError(
            f"{source} is CogVideo (2022), which is converted whole, every number as it is: without {named}"
        )
    began, parts = time.monotonic(), open_parts(source)
    (write_theirs if to == "sat" else write_shared)(parts, target)
    print(f"{target}: {size_words(target)}in {time.monotonic() - began:.1f} s")


def holds(model: str) -> bool:
    """Whether a source is such a model, or a stage of one, which is refused."""
    from cogvx_jax.convert.cogvideo2022_folder import is_cogvideo2022, is_stage

    return model == PUBLISHED_2022 or is_cogvideo2022(model) or is_stage(model)


def quantize(source: str, target: str | None, to: str, unused: Mapping[str, object]) -> None:
    """Writes such a folder with kernels of integers.

    Args:
      unused: by name, what the verb was told beside that; nothing of it may be.
    """
    from cogvx_jax.convert.cogvideo2022_folder import open_parts
    from cogvx_jax.convert.cogvideo2022_quantized import write_quantized_parts

    if target is None or (told := [name for name, value in unused.items() if value]):
        named = "a folder to write" if target is None else f"without {', '.join(f'--{name}' for name in told)}"
        raise ValueError(f"{source} is CogVideo (2022), which is quantised whole: {named}")
    began, how = time.monotonic(), find_quantization(to)
    write_quantized_parts(open_parts(source), target, how)
    print(f"{target}: {how.name}, {size_words(target)}in {time.monotonic() - began:.1f} s")


def enhancer(model: str, given: Given, endpoint: Endpoint) -> Enhancer:
    """As `cli.enhance.prompt_enhancer`: the sentence is Chinese, and short."""
    endpoint = endpoint.filled()
    from cogvx_jax.convert.cogvideo2022_folder import open_parts
    from cogvx_jax.convert.cogvideo2022_sizes import CHINESE as CHINESE_NAME
    from cogvx_jax.models.cogvideo2022.configs import MAX_TEXT
    from cogvx_jax.pipelines.cogvideo2022.load import read_small
    from cogvx_jax.pipelines.cogvideo2022.text import longest_text

    check_nothing_given(model, given)
    parts = open_parts(model)
    tokenizer, _ = read_small(parts)
    wording = CHINESE if tokenizer.language == CHINESE_NAME else ENGLISH
    return Enhancer(endpoint, lambda text: longest_text(tokenizer, text), MAX_TEXT, wording)


def check_nothing_given(model: str, about: Given) -> None:
    """Raises ValueError for what is said of the model beside its files, which tell everything."""
    if about:
        raise ValueError(f"{model} is CogVideo (2022), whose files tell everything; leave out {about.said()[0]}")


def fingerprints(model: str) -> dict[str, str]:
    """Of each part of such a folder."""
    from cogvx_jax.convert.cogvideo2022_folder import open_parts
    from cogvx_jax.pipelines.cogvideo2022.provenance import part_fingerprints

    return part_fingerprints(open_parts(model))


def licence_of(model: str, parts: "Parts") -> str:
    """Of a model as `--model` names it. Its makers' has their tokenizers, language and settings."""
    if model in SHIPPED_2022:
        return "Apache-2.0"
    return LICENCE if parts.beside == type(parts.beside)() else "its trainer's: it is not the published model"


def describe(place: str, given: Given) -> dict[str, Any]:
    """What `info` prints; no weights are read. Raises: ValueError for what is said beside the files."""
    from cogvx_jax.convert.cogvideo2022 import network_parameters
    from cogvx_jax.convert.cogvideo2022_folder import open_parts
    from cogvx_jax.storage import open_files, parent_and_name

    check_nothing_given(place, given)
    parts = open_parts(place)
    first = next(iter(parts.stages.values()))

    def count(*, base: bool = True, channel: bool = True) -> dict[str, int]:
        sizes = {s: network_parameters(cfg, base=base, channel=channel) for s, cfg in parts.stages.items()}
        return {stage: sum(math.prod(p.shape) for p in own) for stage, own in sizes.items()}

    def there(path: Any) -> str:
        folder, name = parent_and_name(path)
        return "there" if open_files(folder).exists(name) else "missing"

    base, own = next(iter(count(channel=False).values())), count(base=False)
    return {
        "model": "CogVideo (2022)",
        "base": f"{base:,} parameters, {'stored once' if parts.shared else f'stored {len(parts.stages)} times'}",
        "stages": ", ".join(f"{stage} {number:,}" for stage, number in own.items()),
        "sizes": f"{first.layers} layers, width {first.width}, {first.heads} heads, {first.vocab:,} words",
        "frames": f"{first.frames} key frames of {first.grid}x{first.grid} codes",
        "weights in 16 bit": f"{2 * (base + sum(own.values())) / 1e9:.3g} GB, the base once",
        "image tokenizer": "there" if parts.images is not None else "missing",
        "text tokenizer": there(parts.text_model),
        "clusters": there(parts.clusters),
        "quantised": parts.how.name if parts.how is not None else "no",
        "licence": licence_of(place, parts),
    }
