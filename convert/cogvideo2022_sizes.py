"""What `cogvideo2022.json` says beside the stages, as values: a model of other sizes than the published one has it.

    {"stages": {...},
     "images": {"codes": 512, "channels": 16, "decoders": [[8, [1, 1, 2, 4]]], ...},
     "language": "English",
     "settings": {"depth": 2, "guidance": 2.0, "frames": {"clusters": 12, "temperature": 1.0, "inner": 1.0}, ...}}

What it does not say is as published.
"""

import dataclasses
from typing import Any

from cogvx_jax.json_files import Json, quoted
from cogvx_jax.models.cogvideo2022.configs import IMAGE_TOKENIZER, ImageTokenizerConfig

CHINESE = "Chinese"
MOST = 100_000  # of any size
MOST_BLOCKS = 16  # of a level; shapes of thousands take minutes to find


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside:
    """See above.

    Attributes:
      language: of prompts. The published model's is Chinese.
      settings: defaults of a video; see `Settings` of the pipeline, which checks them.
    """

    images: ImageTokenizerConfig = IMAGE_TOKENIZER
    language: str = CHINESE
    settings: Json = dataclasses.field(default_factory=dict)


def read_beside(said: Json, where: str) -> Beside:
    """Raises: ValueError, one sentence, for what is none of it."""
    if unknown := set(said) - {"stages", "images", "language", "settings"}:
        raise ValueError(f"{where} has {quoted(min(unknown))}, which is nothing that a CogVideo (2022) has")
    language, settings = said.get("language", CHINESE), said.get("settings", {})
    if not isinstance(language, str) or not language.isalpha():
        raise ValueError(f"{where}: language {quoted(language)} is no name of a language, such as English")
    if not isinstance(settings, dict):
        raise ValueError(f"{where}: settings {quoted(settings)} are no table")
    return Beside(images=_images(said.get("images", {}), where), language=language, settings=settings)


def beside_json(beside: Beside) -> Json:
    """The inverse of `read_beside`: what differs from what is published."""
    found: Json = {}
    if beside.images != IMAGE_TOKENIZER:
        found["images"] = dataclasses.asdict(beside.images)
    if beside.language != CHINESE:
        found["language"] = beside.language
    return found | ({"settings": dict(beside.settings)} if beside.settings else {})


def _images(said: Any, where: str) -> ImageTokenizerConfig:
    if not isinstance(said, dict):
        raise ValueError(f"{where}: images {quoted(said)} are no table of sizes")
    read = {"encoder": _whole_numbers, "encoder_blocks": _few, "decoders": _decoders, "norm_eps": _share}
    known = {field.name for field in dataclasses.fields(ImageTokenizerConfig)}
    found: dict[str, Any] = {}
    for name, value in said.items():
        made = read.get(name, _whole_number)(value) if name in known else None
        if made is None:
            raise ValueError(f"{where}: {name} {quoted(value)} is no size of CogVideo's image tokenizer")
        found[name] = made
    cfg = ImageTokenizerConfig(**found)
    if cfg.channels % cfg.groups or min(cfg.rates) != 1 << (len(cfg.encoder) - 1):
        raise ValueError(f"{where}: sizes of the image tokenizer do not fit each other: {quoted(said)}")
    return cfg


def _whole_number(value: Any) -> int | None:
    return value if type(value) is int and 1 <= value <= MOST else None


def _few(value: Any) -> int | None:
    return value if type(value) is int and 1 <= value <= MOST_BLOCKS else None


def _whole_numbers(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not 1 <= len(value) <= 8 or not all(_whole_number(n) for n in value):
        return None
    return tuple(value)


def _decoders(value: Any) -> tuple[tuple[int, tuple[int, ...]], ...] | None:
    """From the coarsest: [[16, [1, 1, 1, 2, 4]], [8, [1, 1, 2, 4]]]. A rate is 2 to the power of levels less one."""
    if not isinstance(value, list) or not value:
        return None
    found = []
    for row in value:
        levels = _whole_numbers(row[1]) if isinstance(row, list) and len(row) == 2 else None
        if levels is None or row[0] != 1 << (len(levels) - 1):
            return None
        found.append((row[0], levels))
    rates = [rate for rate, _ in found]
    return tuple(found) if all(a == 2 * b for a, b in zip(rates, rates[1:], strict=False)) else None


def _share(value: Any) -> float | None:
    return value if type(value) is float and 0 < value < 1 else None
