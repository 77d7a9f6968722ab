"""Reads colour, shape, motion and background off a drawn or generated clip, in plain NumPy.

It measures what a clip of the `tiny` model shows, without knowing what it was asked for: a soft mask
of the shape, then moments of that mask, frame by frame.
"""

import functools

import numpy as np

from cogvx_jax.tiny.shapes import CORNERS, MOVES, PALETTE, RING, ROUND, Scene, coverage

# Read as motion: about half of the least that shapes.draw makes.
DRIFT = 0.19  # of the picture's side; drawn 0.375 to 0.53
GROWTH = 0.63  # change of log area; drawn 1.26 to 2.5
TURN = 0.8  # radians; drawn 1.6 to 2.2
# Read as corners: the harmonic over that of a sharp shape. A star blurred by 2 pixels keeps 0.48 of it;
# a circle after the coarsest compression tried reaches 0.13.
CORNERED = 0.35
# Read as a ring: the mask's mean about its centre. Of a drawn ring 0, of the other shapes 1.
HOLLOW = 0.5
# Read as a shape at all.
CONTRAST = 40  # levels, Euclidean over the channels; the closest two palette colours are 100 apart
AREA = 0.003  # of the picture; the smallest drawn star covers 0.01
SEEN = 0.75  # of the frames


def judge(frames: np.ndarray) -> Scene:
    """What the clip shows, (F, H, W, 3) uint8. Of a clip without a visible shape, a guess."""
    return _read(frames)[0]


def score(frames: np.ndarray, scene: Scene) -> dict[str, bool]:
    """Which of the scene's four properties the clip, (F, H, W, 3) uint8, shows.

    Returns: by "colour", "shape", "motion" and "background". The first three are False where no
      shape is visible in most frames, whatever `judge` guesses.
    """
    seen, visible = _read(frames)
    return {
        name: getattr(seen, name) == getattr(scene, name) and (visible or name == "background")
        for name in ("colour", "shape", "motion", "background")
    }


def centres(frames: np.ndarray) -> np.ndarray:
    """Where the shape is in each frame of a clip, (F, H, W, 3) uint8: row and column in pixels, (F, 2)."""
    return _moments(_mask(np.asarray(frames, np.float32))[0])[1]


def _mask(video: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much of each pixel (F, H, W) is the shape, 0 to 1; the colours (3,) of shape and background."""
    back = _background(video)
    fore = _foreground(video, back)
    axis = fore - back
    along = (video - back) @ axis / max(float(axis @ axis), 1.0)
    return np.clip((along - 0.3) / 0.4, 0, 1), fore, back  # steeper than `along`, so that noise vanishes


def _read(frames: np.ndarray) -> tuple[Scene, bool]:
    """The scene, and whether a shape is visible in most frames."""
    mask, fore, back = _mask(np.asarray(frames, np.float32))
    background = _nearest(back, PALETTE)
    colour = _nearest(fore, [name for name in PALETTE if name != background])
    area, centre, waves, core = _moments(mask)
    present = area >= AREA * mask[0].size
    visible = bool(np.linalg.norm(fore - back) >= CONTRAST and present.mean() >= SEEN)
    if present.sum() < 2:
        return Scene(colour, "circle", "stays still", background), False

    time = np.linspace(0, 1, len(mask))[present]
    area, centre, waves, core = area[present], centre[present], waves[present], core[present]
    shape = RING if np.average(core, weights=area) < HOLLOW else _shape(area, waves)
    drift = np.polyfit(time, centre, 1)[0] / mask.shape[1:]  # (2,), down and right
    growth = np.polyfit(time, np.log(area), 1)[0]
    turn = _turn(time, area, waves, shape)
    return Scene(colour, shape, _motion(drift, growth, turn), background), visible


def _background(video: np.ndarray) -> np.ndarray:
    """The median colour, (3,), of the border, two pixels wide, over all frames."""
    inside = np.zeros(video.shape[1:3], bool)
    inside[2:-2, 2:-2] = True
    return np.median(video[:, ~inside].reshape(-1, 3), axis=0)


def _foreground(video: np.ndarray, back: np.ndarray) -> np.ndarray:
    """The median colour, (3,), of the pixels farthest from the background."""
    height, width = video.shape[1:3]
    # A mean over 3 x 3 pixels, as otherwise noise decides which pixels are farthest.
    rows = sum((video[:, i : height - 2 + i] for i in range(3)), np.zeros(()))
    smooth = (sum((rows[:, :, i : width - 2 + i] for i in range(3)), np.zeros(())) / 9).reshape(-1, 3)
    away = smooth - back
    distance = np.sqrt(np.einsum("nc,nc->n", away, away))  # much faster than norm over so short an axis
    return np.median(smooth[distance >= 0.8 * np.quantile(distance, 0.998)], axis=0)


def _nearest(colour: np.ndarray, names) -> str:
    return min(names, key=lambda name: np.linalg.norm(colour - PALETTE[name]))


def _moments(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Moments of a mask (F, H, W) in [0, 1].

    Returns: area (F,), pixels; centre (F, 2), row and column; waves (F, 3) complex, the 3rd, 4th and
      5th harmonic of the outline over its mean, so that the size cancels and the phase turns with the shape;
      core (F,), the mean within 0.3 of the radius of a disc of its area.
    """
    y, x = (np.arange(n, dtype=np.float32) + 0.5 for n in mask.shape[1:])
    area = mask.sum((1, 2))
    safe = np.maximum(area, 1e-6)
    centre = np.stack([mask.sum(2) @ y, mask.sum(1) @ x], 1) / safe[:, None]
    z = (x - centre[:, 1, None, None]) - 1j * (y[:, None] - centre[:, 0, None, None])  # (F, H, W)
    r = np.abs(z)
    disc = np.sqrt(safe / np.pi)[:, None, None]  # its radius
    inside = r < np.maximum(0.3 * disc, 1)
    core = (mask * inside).sum((1, 2)) / inside.sum((1, 2))
    # A star's points reach 1.54 times the radius of a disc of its area; what lies beyond is a stray speck.
    weight = np.where(r < 1.9 * disc, mask, 0) * r**2
    unit = z / np.maximum(r, 1e-6)
    wave, waves = weight * unit * unit, []
    for _ in (3, 4, 5):
        wave = wave * unit
        waves.append(wave.sum((1, 2)))
    return area, centre, np.stack(waves, 1) / np.maximum(weight.sum((1, 2)), 1e-6)[:, None], core


def _strength(area: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """The harmonics' magnitudes, (3,), over the frames; larger shapes are better resolved and count more."""
    return np.average(np.abs(waves), axis=0, weights=area)


@functools.cache
def _templates() -> dict[str, float]:
    """For each shape with corners, the magnitude of its own harmonic when drawn sharp and large."""
    strengths = {}
    for shape, corners in CORNERS.items():
        area, _, waves, _ = _moments(coverage(shape, np.full((1, 2), 32.0), np.array([16.0]), np.zeros(1), 64))
        strengths[shape] = float(_strength(area, waves)[corners - 3])
    return strengths


def _shape(area: np.ndarray, waves: np.ndarray) -> str:
    strength = _strength(area, waves)
    relative = {shape: strength[CORNERS[shape] - 3] / full for shape, full in _templates().items()}
    best = max(relative, key=lambda name: relative[name])
    return best if relative[best] >= CORNERED else "circle"


def _turn(time: np.ndarray, area: np.ndarray, waves: np.ndarray, shape: str) -> float:
    """The angle, in radians, that the shape turns by over the clip, either way; 0 for what is round.

    It is the steady turn that best aligns the frames. Unlike a phase unwrapped from frame to frame,
    one bad frame does not upset it.
    """
    if shape in ROUND:
        return 0.0
    corners = CORNERS[shape]
    turns = np.linspace(-3, 3, 121)
    aligned = (np.exp(-1j * corners * turns[:, None] * time) * (area * waves[:, corners - 3])).sum(1)
    return float(abs(turns[np.argmax(np.abs(aligned))]))


def _motion(drift: np.ndarray, growth: float, turn: float) -> str:
    """The motion that is farthest past its threshold, if any is."""
    past = {name: float(drift @ direction) / DRIFT for name, direction in MOVES.items()}
    past |= {"grows": growth / GROWTH, "shrinks": -growth / GROWTH, "spins": turn / TURN}
    best = max(past, key=lambda name: past[name])
    return best if past[best] >= 1 else "stays still"
