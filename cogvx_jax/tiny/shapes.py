"""Drawn clips of one moving shape with captions: the data of the `tiny` model.

A caption follows `a {colour} {shape} {motion} on a {colour} background`. A circle that spins looks
like one that stays still, so that pair is not part of the grammar.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

PALETTE = {
    "red": (215, 35, 40),
    "green": (35, 165, 70),
    "blue": (40, 75, 220),
    "yellow": (250, 225, 50),
    "orange": (240, 130, 20),
    "purple": (140, 50, 175),
    "white": (248, 248, 248),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "star")
RING = "ring"  # can be drawn and judged, too, but is in none of `scenes`: it is there to be learnt by fine-tuning
MOVES = {"moves left": (0, -1), "moves right": (0, 1), "moves up": (-1, 0), "moves down": (1, 0)}
MOTIONS = (*MOVES, "grows", "shrinks", "spins", "stays still")
ROUND = ("circle", RING)  # turned, they look as before
CORNERS = {"square": 4, "triangle": 3, "star": 5}
STAR_INNER = 0.45  # inner over outer radius
STAR_SIZE = 1.2  # drawn this much larger than other shapes, so that it covers as much as a square does
RING_INNER = 0.5  # radius of its hole over its own
SIZE, FRAMES, FPS = 64, 17, 8
EDGE = 2.0  # pixels over which an edge goes from background to colour
HELD_OUT = 224  # combinations that no training clip shows


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a clip shows. `str(scene)` is its caption."""

    colour: str
    shape: str
    motion: str
    background: str

    def __str__(self) -> str:
        what = f"{article(self.colour)} {self.colour} {self.shape} {self.motion}"
        return f"{what} on {article(self.background)} {self.background} background"


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def scenes(shown: Sequence[str] = SHAPES) -> list[Scene]:
    """Every combination of the grammar with these shapes, in a fixed order."""
    return [
        Scene(colour, shape, motion, background)
        for colour, shape, motion, background in itertools.product(PALETTE, shown, MOTIONS, PALETTE)
        if colour != background and not (shape in ROUND and motion == "spins")
    ]


def split() -> tuple[list[Scene], list[Scene]]:
    """The scenes to train on and those held out, the same ones at every call."""
    everything = scenes()
    order = np.random.default_rng(20240806).permutation(len(everything))
    held_out = set(order[:HELD_OUT].tolist())
    return (
        [s for i, s in enumerate(everything) if i not in held_out],
        [s for i, s in enumerate(everything) if i in held_out],
    )


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """The scene's caption, worded as a person might: "a orange", a full stop, capitals."""
    text = str(scene)
    if rng.random() < 0.15:
        text = text.replace("an orange", "a orange")
    draw = rng.random()
    if draw < 0.1:
        text = text.upper()
    elif draw < 0.3:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.25 else text


def draw(
    scene: Scene, rng: np.random.Generator, *, size: int = SIZE, frames: int = FRAMES, edge: float = EDGE
) -> np.ndarray:
    """One clip of the scene, its size, place and pace random: (F, H, W, 3) uint8."""
    time = np.linspace(0, 1, frames)
    unit = size / 64
    radius = np.full(frames, rng.uniform(11, 14.5) * unit)
    angle = np.full(frames, rng.uniform(-0.25, 0.25))
    centre = np.full((frames, 2), size / 2) + rng.uniform(-5, 5, 2) * unit
    if scene.motion in MOVES:
        direction = np.array(MOVES[scene.motion])
        path = (time[:, None] - 0.5) * rng.uniform(24, 34) * unit * direction
        # Along its path the shape stays near the middle, so that it never leaves the picture.
        centre = np.where(direction != 0, size / 2 + path + rng.uniform(-2, 2) * unit, centre)
    elif scene.motion in ("grows", "shrinks"):
        small, large = rng.uniform(5.5, 8) * unit, rng.uniform(15, 19) * unit
        radius = small + (large - small) * (time if scene.motion == "grows" else 1 - time)
    elif scene.motion == "spins":
        angle = angle + time * rng.uniform(1.6, 2.2)  # clockwise, radians
    if scene.shape == "star":
        radius = radius * STAR_SIZE
    colour, background = (np.array(PALETTE[c], np.float32) for c in (scene.colour, scene.background))
    cover = coverage(scene.shape, centre, radius, angle, size, edge)[..., None]
    return np.round(background + cover * (colour - background)).astype(np.uint8)


def coverage(
    shape: str, centre: np.ndarray, radius: np.ndarray, angle: np.ndarray, size: int, edge: float = 1.0
) -> np.ndarray:
    """How much of each pixel the shape covers, (F, size, size) in [0, 1], edges `edge` pixels soft.

    centre: (F, 2) row and column; radius: (F,) to the farthest point; angle: (F,) clockwise.
    """
    grid = np.arange(size) + 0.5
    y = grid[None, :, None] - centre[:, 0, None, None]
    x = grid[None, None, :] - centre[:, 1, None, None]
    r, angle = radius[:, None, None], angle[:, None, None]
    distance = np.hypot(x, y)
    if shape in ROUND:
        signed = r - distance  # positive inside
        if shape == RING:
            signed = np.minimum(signed, distance - RING_INNER * r)
        return np.clip(signed / edge + 0.5, 0, 1)
    # Fold the plane into one sector between two corners; its edge is then a single line.
    corners = CORNERS[shape]
    start = np.pi / 4 if shape == "square" else np.pi / 2
    theta = np.arctan2(-y, x) + angle - start
    half = np.pi / corners
    theta = np.abs((theta + half) % (2 * half) - half)  # 0 at a corner, `half` between two
    px, py = distance * np.cos(theta), distance * np.sin(theta)
    inner = STAR_INNER if shape == "star" else np.cos(half)
    ex, ey = inner * np.cos(half) - 1, inner * np.sin(half)  # the edge, from the corner (1, 0), times r
    length = np.hypot(ex, ey)
    signed = (ex * py - ey * (px - r)) / length
    return np.clip(signed / edge + 0.5, 0, 1)
