"""What verbs do with a folder of CogVideo (2022), whose parts are not those of the other models."""

import math
import time
from typing import Any

from cogvx_jax.cli.options import size_words
from cogvx_jax.given import Given

LICENCE = "The CogVideo License: its restrictions of use travel with the weights"


def convert_cogvideo2022(source: str, target: str, to: str, about: Given, unused: dict[str, object]) -> None:
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


def describe_cogvideo2022(place: str) -> dict[str, Any]:
    """What `info` prints; no weights are read."""
    from cogvx_jax.convert.cogvideo2022 import network_parameters
    from cogvx_jax.convert.cogvideo2022_folder import open_parts
    from cogvx_jax.storage import open_files, parent_and_name

    parts = open_parts(place)
    first = next(iter(parts.stages.values()))

    def count(**which: bool) -> dict[str, int]:
        sizes = {stage: network_parameters(cfg, **which) for stage, cfg in parts.stages.items()}
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
        "weights in 16 bit": f"{2 * (base + sum(own.values())) / 1e9:.1f} GB, the base once",
        "image tokenizer": "there" if parts.images is not None else "missing",
        "text tokenizer": there(parts.text_model),
        "clusters": there(parts.clusters),
        "licence": LICENCE,
    }
