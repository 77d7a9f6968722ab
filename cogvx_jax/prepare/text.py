"""Step `text`: how much of the picture letters take, by the detector of the package rapidocr, which has its weights."""

import functools
from typing import Any

import numpy as np

from cogvx_jax.prepare.look import Look
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings

FRAMES = 3  # of a clip that are looked at
SURE = 0.6  # how sure the detector must be of a box
LEAST = 0.001  # share of a frame that letters must take for it to have text
SIDE = 384  # pixels of the longer side that the detector sees
TALLEST = 0.3  # share of a frame's height that a line may have; taller boxes are textures that it takes for letters
SAME = 2.0  # levels by which frames may differ to be looked at once


def text(clip: Row, look: Look, settings: Settings) -> Row:
    """Returns: `text_area`, the share of the frame inside the boxes, each pixel once, the mean of three frames;
    `text_share_frames`, of these, those with text; `text_boxes`, the most in one.

    The detector takes some textures for digits. Raises: ValueError where rapidocr is missing.
    """
    import PIL.Image

    detect = _detector()
    if not len(look.large):
        return {}
    chosen = {(len(look.large) - 1) * i // (FRAMES - 1) for i in range(FRAMES)}
    areas, most, before = [], 0, None
    for n in sorted(chosen):
        picture = PIL.Image.fromarray(look.large[n])
        picture.thumbnail((SIDE, SIDE))
        pixels = np.asarray(picture)
        if before is not None and np.abs(pixels.astype(np.float32) - before).mean() < SAME:
            areas.append(areas[-1])
            continue
        lines = [
            box for box, sure in detect(pixels[..., ::-1]) if sure >= SURE and _height(box) <= TALLEST * len(pixels)
        ]
        areas.append(_covered(lines, *picture.size[::-1]))
        most, before = max(most, len(lines)), pixels.astype(np.float32)
    return {
        "text_area": float(np.mean(areas)),
        "text_share_frames": float(np.mean(np.asarray(areas) >= LEAST)),
        "text_boxes": most,
    }


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
def _detector() -> Any:
    """Called with a picture (H, W, 3) uint8, BGR; gives boxes and how sure each is."""
    try:
        from rapidocr import RapidOCR
    except ImportError:
        raise ValueError("this step needs the package rapidocr: pip install 'cogvx_jax[prepare]'") from None
    reader: Any = RapidOCR(params={"Global.log_level": "critical", "Det.limit_side_len": SIDE, "Det.limit_type": "max"})

    def detect(picture: np.ndarray) -> list[tuple[np.ndarray, float]]:
        found = reader(picture, use_det=True, use_cls=False, use_rec=False)
        boxes = getattr(found, "boxes", None)
        return [] if boxes is None else list(zip(boxes, found.scores, strict=True))

    return detect
