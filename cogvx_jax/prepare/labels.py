"""Step `labels`: the six negative labels of the CogVideoX paper, as probabilities.

Editing (re-cut, effects), static (no motion connects the frames: slide shows), low quality (blur, shake), lecture (a
person talks), text (much of it) and screenshot (recordings of a screen). Source: arXiv:2408.06072, section 3.1.

Rules read the scores. Each is a product or a maximum of ramps, from 0 where a score is harmless to 1 where it is not.
"""

from collections.abc import Callable, Mapping

from cogvx_jax.prepare.label_head import read_head
from cogvx_jax.prepare.label_names import LABELS
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings


def by_rules(clip: Row) -> dict[str, float | None]:
    """The six of a clip's scores; None where a score that a rule needs is missing."""
    return {name: RULES[name](clip) for name in LABELS}


def ramp(value: float | None, harmless: float, bad: float) -> float | None:
    """0 at `harmless`, 1 at `bad`, straight between them; None of nothing."""
    if value is None:
        return None
    return min(max((value - harmless) / (bad - harmless), 0.0), 1.0)


def _editing(clip: Row) -> float | None:
    """Frames around the picture, or rectangles that stay while the rest moves."""
    return _most(ramp(clip.get("border_area"), 0.05, 0.3), ramp(clip.get("logo_area"), 0.02, 0.15))


def _static(clip: Row) -> float | None:
    """Most pairs stand still, or most steps change nothing: a slide show of sharp stills has jumps in between."""
    return _most(ramp(clip.get("motion_static_share"), 0.4, 0.7), ramp(clip.get("freeze_share"), 0.4, 0.8))


def _low_quality(clip: Row) -> float | None:
    """Blur, flat or clipped pictures, blocks, or a camera that shakes."""
    worst = (
        ramp(clip.get("sharpness"), 60.0, 10.0),
        ramp(clip.get("contrast"), 0.08, 0.02),
        ramp(clip.get("clipped"), 0.3, 0.6),
        ramp(clip.get("blockiness"), 1.5, 3.0),
        ramp(clip.get("shake"), 3.0, 8.0),
    )
    return None if worst[0] is None else _most(*worst)


def _lecture(clip: Row) -> float | None:
    """Somebody who talks: before a camera that stands, a small part of the picture moves, always the same one.

    Someone who crosses the picture moves in ever other places, and in a slide show nothing moves but all at once.
    """
    area, place = clip.get("motion_area"), clip.get("motion_place")
    stands = ramp(clip.get("camera_shift"), 1.5, 0.5)
    if area is None or stands is None:
        return None
    least = (stands, ramp(area, 0.002, 0.01), ramp(area, 0.5, 0.25), ramp(place or 0.0, 0.4, 0.65))
    return min(x for x in least if x is not None)


def _text(clip: Row) -> float | None:
    return ramp(clip.get("text_area"), 0.02, 0.1)


def _screenshot(clip: Row) -> float | None:
    """Text in all frames of a picture that hardly moves."""
    text, still = ramp(clip.get("text_area"), 0.03, 0.15), ramp(clip.get("motion_static_share"), 0.3, 0.8)
    return None if text is None or still is None else text * still


def _most(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


RULES: Mapping[str, Callable[[Row], float | None]] = {
    "editing": _editing,
    "static": _static,
    "low_quality": _low_quality,
    "lecture": _lecture,
    "text": _text,
    "screenshot": _screenshot,
}


def labels(clip: Row, settings: Settings) -> Row:
    """Returns: a field of each label, a probability or None, and `label_source`."""
    if settings.labels.source == "head":
        found = read_head(settings.labels.head or "")(clip)
    else:
        found = by_rules(clip)
    return found | {"label_source": settings.labels.source}
