"""Step `text`: how much of the picture letters take, and their language, by rapidocr, which has its weights."""

import functools
from typing import Any

import numpy as np

from cogvx_jax.prepare.look import Look
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings
from cogvx_jax.prompting.languages import other_language

FIELDS = ("text_area", "text_share_frames", "text_boxes", "text_language")
FRAMES = 3  # of a clip that are looked at
SURE = 0.6  # how sure the detector must be of a box
LEAST = 0.001  # share of a frame that letters must take for it to have text
SIDE = 384  # pixels of the longer side that the detector sees
TALLEST = 0.3  # share of a frame's height that a line may have; taller boxes are textures that it takes for letters
LETTERS = 8  # that must be read for a language to be told
SAME = 2.0  # levels by which frames may differ to be looked at once


def text(clip: Row, look: Look, settings: Settings) -> Row:
    """Returns: `text_area`, the share of the frame inside the boxes, each pixel once, the mean of three frames;
    `text_share_frames`, of these, those with text; `text_boxes`, the most in one;
    `text_language`, English or what the letters of the frame with the most text look like, None of fewer than eight.
      The reader knows Latin, Chinese and Japanese letters.

    The detector takes some textures for digits. Raises: ValueError where rapidocr is missing.
    """
    import PIL.Image

    reader = _reader()
    if not len(look.large):
        return {}
    chosen = {(len(look.large) - 1) * i // (FRAMES - 1) for i in range(FRAMES)}
    areas, most, before, shown = list[float](), 0, None, -1
    for n in sorted(chosen):
        picture = PIL.Image.fromarray(look.large[n])
        picture.thumbnail((SIDE, SIDE))
        pixels = np.asarray(picture)
        if before is not None and np.abs(pixels.astype(np.float32) - before).mean() < SAME:
            areas.append(areas[-1])
            continue
        lines = [box for box, sure in _boxes(reader, pixels) if sure >= SURE and _height(box) <= TALLEST * len(pixels)]
        area = _covered(lines, *picture.size[::-1])
        shown = n if lines and area > max(areas, default=0.0) else shown
        areas.append(area)
        most, before = max(most, len(lines)), pixels.astype(np.float32)
    return {
        "text_area": float(np.mean(areas)),
        "text_share_frames": float(np.mean(np.asarray(areas) >= LEAST)),
        "text_boxes": most,
        "text_language": None if shown < 0 else _language(reader, look.large[shown]),
    }


def _language(reader: Any, picture: np.ndarray) -> str | None:
    """Of what can be read in a picture (H, W, 3)."""
    found = reader(picture[..., ::-1], use_det=True, use_cls=False, use_rec=True)
    words = " ".join(found.txts or ())
    return (other_language(words) or "English") if sum(map(str.isalpha, words)) >= LETTERS else None


def _boxes(reader: Any, picture: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Quadrangles (4, 2) around the lines of a picture (H, W, 3), and how sure each is."""
    found = reader(picture[..., ::-1], use_det=True, use_cls=False, use_rec=False)
    boxes = getattr(found, "boxes", None)
    return [] if boxes is None else list(zip(boxes, found.scores, strict=True))


def _height(box: np.ndarray) -> float:
    """Of a quadrangle (4, 2) that begins at the top left and goes round clockwise, its shorter side."""
    sides = np.linalg.norm(np.diff(np.vstack([box, box[:1]]), axis=0), axis=1)
    return float(min(sides[0] + sides[2], sides[1] + sides[3]) / 2)


def _covered(boxes: list[np.ndarray], height: int, width: int) -> float:
    """The share of a frame inside quadrangles (4, 2) of x and y."""
    import PIL.Image
    import PIL.ImageDraw

    mask = PIL.Image.new("1", (width, height))
    draw = PIL.ImageDraw.Draw(mask)
    for box in boxes:
        draw.polygon([(float(x), float(y)) for x, y in box], fill=1)
    return float(np.asarray(mask).mean())


@functools.cache
def _reader() -> Any:
    """RapidOCR, with the weights that it brings."""
    try:
        from rapidocr import RapidOCR
    except ImportError:
        raise ValueError("this step needs the package rapidocr: pip install 'cogvx_jax[prepare]'") from None
    return RapidOCR(params={"Global.log_level": "critical", "Det.limit_side_len": SIDE, "Det.limit_type": "max"})
