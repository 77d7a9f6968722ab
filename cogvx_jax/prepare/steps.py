"""The steps, in their order: what each reads of a row, which fields it adds, and what it needs."""

import importlib.util
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from cogvx_jax.metrics.feature_functions import find_function, of_frames, of_texts
from cogvx_jax.prepare import (
    aesthetic,
    borders,
    captions,
    check,
    duplicates,
    embedding,
    labels,
    motion,
    quality,
    text,
)
from cogvx_jax.prepare.captioners import check_folder
from cogvx_jax.prepare.label_names import LABELS, SCORES
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings

# "film": a film; "look": a clip and its frames; "asked": the same, and somebody far away; "row": a clip's row.
Kind = Literal["film", "look", "asked", "row", "write"]


class Step(NamedTuple):
    """A row of the table."""

    kind: Kind
    version: int  # raised when other fields come out: what is stored is done again
    fields: tuple[str, ...]  # that it adds
    run: Callable[..., Row] | None = None  # None where `films.py` has its call
    reads: tuple[str, ...] = ()  # fields on which the result depends, beside the film's bytes and the clip's frames
    part: str | None = None  # of the settings
    needs: tuple[str, ...] = ()  # packages, as Python imports them


PROBED = tuple(
    "width height sar rotation fps fps_average vfr frames duration codec pix_fmt color interlaced audio".split()
)
CUT = ("clip_id", "start", "end", "start_frame", "end_frame", "shot", "cut_scores", "frames_seen")
GIVEN = ("source", "digest", "bytes", "prompt", "errors")  # of every row, without a step
CROP = ("crop",)

STEPS: Mapping[str, Step] = {
    "probe": Step("film", 1, PROBED),
    "shots": Step("film", 2, CUT, part="shots"),
    "borders": Step("look", 2, ("crop", "border_area", "logo_area"), borders.borders),
    "duplicates": Step("look", 1, ("phash", "dup_of"), duplicates.hashes, CROP, needs=("imagehash",)),
    "quality": Step(
        "look",
        2,
        quality.FIELDS,
        quality.quality,
        CROP,
        needs=("cv2",),
    ),
    "motion": Step(
        "look",
        2,
        motion.FIELDS,
        motion.motion,
        CROP,
        needs=("cv2",),
    ),
    "text": Step("look", 2, text.FIELDS, text.text, CROP, needs=("rapidocr",)),
    "aesthetic": Step("look", 1, ("aesthetic", "aesthetic_scorer"), aesthetic.aesthetic, CROP, "aesthetic"),
    "embedding": Step("look", 1, embedding.FIELDS, embedding.embedding, CROP, "embedding"),
    "labels": Step("row", 2, (*LABELS, "label_source"), labels.labels, (*SCORES, *embedding.FIELDS), "labels"),
    "captions": Step("asked", 1, captions.FIELDS, captions.captions, CROP, "captions"),
    "check": Step("row", 2, check.FIELDS, check.check, ("caption", "prompt", "embedding"), "captions"),
    "write": Step("write", 1, ("video", "video_height", "video_width", "video_frames"), None, CROP, "write"),
}
KNOWN = frozenset(GIVEN).union(*(step.fields for step in STEPS.values()))  # fields of a row


def chosen(settings: Settings) -> tuple[str, ...]:
    """The steps to do, in their order. Raises: ValueError for one that is unknown, or lacks a package or a function."""
    for name in settings.steps:
        if name not in STEPS:
            raise ValueError(f"there is no step {name!r}; the steps are {', '.join(STEPS)}")
    names = tuple(name for name in STEPS if not settings.steps or name in settings.steps)
    if settings.captions.url is None and settings.captions.local is None:
        if "captions" in settings.steps:
            raise ValueError("the step captions needs somebody to ask: give --captions URL, or local in its settings")
        names = tuple(name for name in names if name != "captions")
    if "captions" in names and settings.captions.local is not None:
        check_folder(settings.captions.local)
    missing = [(name, package) for name in names for package in STEPS[name].needs if not _is_there(package)]
    if missing:
        name, package = missing[0]
        raise ValueError(
            f"the step {name} needs the package {package}: pip install 'cogvx_jax[prepare]', or give --steps without it"
        )
    for name, function in (("embedding", of_frames), ("aesthetic", find_function)):
        if name in names and (given := getattr(settings, name).function) is not None:
            function(given)
    if "check" in names and settings.embedding.texts is not None:
        of_texts(settings.embedding.texts)
    return names


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def of_kind(kind: Kind, names: Collection[str]) -> Sequence[str]:
    return [name for name in STEPS if name in names and STEPS[name].kind == kind]
